"""What matters on a GPU, in one command that keeps to a time budget.

    python -m benchmarks gpu [QUESTION ...] [--minutes 8] [--quick]

A fresh process answers each question with each of its sets of compiler flags, since JAX reads flags
once. An answer is a table. Its JSON, `results/speed/gpu_<question>.json`, is written again after
every row, so that a run that stops leaves what it has. Rows that no time is left for say so.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import records, speed, tables
from benchmarks.speed.gpu_questions import QUESTIONS, Question
from benchmarks.timing import process

_GRACE = 20  # seconds beyond its share that a process gets, to finish a row


def main(argv: list[str]) -> int:
    """Answers the questions named, all of them by default, within the minutes given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    speed.add_options(parser)
    args = parser.parse_args(argv)
    unknown = [name for name in args.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    names = args.questions or list(QUESTIONS)
    paths = {name: speed.record(f"gpu_{name}", args) for name in names}
    for path in paths.values():
        records.check_free(path, args.fresh or args.quick)
    end = time.monotonic() + 60 * args.minutes
    right = True
    for index, name in enumerate(names):
        # What one question leaves of its share, the others get.
        waiting = sum(QUESTIONS[other].weight for other in names[index:])
        share = (end - time.monotonic()) * QUESTIONS[name].weight / waiting
        right &= _ask(name, QUESTIONS[name], paths[name], max(share, 0.0), args.quick)
    return 0 if right else 1


def _ask(name: str, question: Question, path: Path, seconds: float, quick: bool) -> bool:
    """Asks one question under each of its flags, and saves.

    False if there is no answer, or if the question is correctness and a row does not show it.
    """
    columns = [*question.labels, *question.values]
    rows, data, on, right = [], {}, {}, True
    for flags_name, flags in question.flags.items():
        labels = [flags_name] if len(question.flags) > 1 else []
        for message in _answers(name, flags, seconds / len(question.flags), quick):
            if "machine" in message:
                on = {**message["machine"], "flags by name": dict(question.flags)}
                if on["backend"] == "cpu" and not quick:
                    sys.exit("there is no GPU here, only a CPU: use --quick to see that all runs")
                continue
            row = [*labels, *message["row"]]
            rows.append([*row, *[""] * (len(columns) - len(row))])
            data[" ".join([*labels, message["name"]])] = message["data"]
            right &= message["data"].get("right", name != "correctness")
            if on:
                title = f"{question.title} ({on['device']})"
                table = tables.Table(title, columns, rows, data)
                records.save(path, table, records.command_of(["gpu", name]), on)
    title = f"{question.title} ({on.get('device', 'no device')})"
    tables.show(tables.Table(title, columns, rows))
    return right and bool(on)


def _answers(name: str, flags: str, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    """What a fresh process prints, message by message; it ends when it overruns its time."""
    code = f"from benchmarks.speed import gpu; gpu.answer({name!r}, {seconds!r}, {quick!r})"
    answering = process("-c", code, flags=flags, env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"})
    timer = threading.Timer(seconds + _GRACE, answering.kill)
    timer.start()
    try:
        with answering.stdout:
            for line in answering.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if answering.wait():
            how = (
                "over its time" if timer.finished.is_set() else f"ended with {answering.returncode}"
            )
            row = [f"the process was stopped: {how}"]
            yield {"row": row, "name": "the end", "data": {"returncode": answering.returncode}}
    finally:
        timer.cancel()
        answering.kill()
        answering.wait()


def answer(name: str, seconds: float, quick: bool) -> None:
    """The fresh process: prints a message for the machine, then one for each row."""
    end = time.monotonic() + seconds
    print(json.dumps({"machine": {**records.machine(), "backend": jax.default_backend()}}))
    for labels, cell in QUESTIONS[name].cells(quick):
        if time.monotonic() > end:
            values, data = ["no time was left"], {}
        else:
            try:
                values, data = cell()
            except Exception as error:  # out of memory, or the compiler refuses: a finding
                values = [f"failed: {type(error).__name__}: {str(error)[:60]}"]
                data = {"error": str(error)[:2000]}
        message = {"row": [*labels, *values], "name": " ".join(labels), "data": data}
        print(json.dumps(message), flush=True)
