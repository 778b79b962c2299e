"""What matters on a GPU, in one command that keeps to a time budget.

    python -m benchmarks gpu [QUESTION ...] [--minutes 8] [--quick]

Each question, and each of its sets of compiler flags, is answered by a fresh process (flags are
read once). An answer is a table; its JSON, `results/gpu_<question>.json`, is written anew after
every row, so that a run that is stopped leaves what it has. What no time is left for is marked so.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import measure
from benchmarks.gpu_questions import QUESTIONS, Question

_GRACE = 20  # seconds that a process has beyond its share, for the row that it is at


def main(argv: list[str]) -> int:
    """Answers the questions named, all of them by default, within the minutes given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    parser.add_argument("--quick", action="store_true", help="tiny, on any device: that it runs")
    args = parser.parse_args(argv)
    unknown = [name for name in args.questions if name not in QUESTIONS]
    if unknown:
        parser.error(f"no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    names = args.questions or list(QUESTIONS)
    end = time.monotonic() + 60 * args.minutes
    right = True
    for index, name in enumerate(names):
        # What one question leaves of its share, the others get.
        waiting = sum(QUESTIONS[other].weight for other in names[index:])
        share = (end - time.monotonic()) * QUESTIONS[name].weight / waiting
        right &= _ask(name, QUESTIONS[name], max(share, 0.0), args.quick)
    return 0 if right else 1


def _ask(name: str, question: Question, seconds: float, quick: bool) -> bool:
    """Asks one question under each of its flags, and saves.

    False for no answer, and where correctness is asked and not shown in every row.
    """
    columns = [*question.labels, *question.values]
    rows, data, on, right = [], {}, {}, True
    for flags_name, flags in question.flags.items():
        labels = [flags_name] if len(question.flags) > 1 else []
        for message in _answers(name, flags, seconds / len(question.flags), quick):
            if "machine" in message:
                on = {**message["machine"], "flags by name": dict(question.flags)}
                if on["backend"] == "cpu" and not quick:
                    sys.exit("there is no GPU here, only a CPU; --quick shows on it that all runs")
                continue
            row = [*labels, *message["row"]]
            rows.append([*row, *[""] * (len(columns) - len(row))])
            data[" ".join([*labels, message["name"]])] = message["data"]
            right &= message["data"].get("right", name != "correctness")
            if on:
                title = f"{question.title} ({on['device']})"
                measure.store(
                    f"gpu_{name}", title, columns, rows, data, command=f"gpu {name}", on=on
                )
    measure.show(f"{question.title} ({on.get('device', 'no device')})", columns, rows)
    return right and bool(on)


def _answers(name: str, flags: str, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    """What a fresh process says, message by message; it is ended when it overruns its time."""
    code = f"from benchmarks import gpu; gpu.answer({name!r}, {seconds!r}, {quick!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(seconds + _GRACE, process.kill)
    timer.start()
    try:
        with process.stdout:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if process.wait():
            how = "over its time" if timer.finished.is_set() else f"ended with {process.returncode}"
            row = [f"the process was stopped: {how}"]
            yield {"row": row, "name": "the end", "data": {"returncode": process.returncode}}
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def answer(name: str, seconds: float, quick: bool) -> None:
    """The fresh process: prints a message for the machine, then one for each row."""
    end = time.monotonic() + seconds
    print(json.dumps({"machine": {**measure.machine(), "backend": jax.default_backend()}}))
    for labels, cell in QUESTIONS[name].cells(quick):
        if time.monotonic() > end:
            values, data = ["no time was left"], {}
        else:
            try:
                values, data = cell()
            except Exception as error:  # out of memory, or refused by the compiler: a finding
                values = [f"failed: {type(error).__name__}: {str(error)[:60]}"]
                data = {"error": str(error)[:2000]}
        message = {"row": [*labels, *values], "name": " ".join(labels), "data": data}
        print(json.dumps(message), flush=True)
