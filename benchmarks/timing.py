"""Interleaved timing, and the JSON that every figure comes from."""

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from reptile_jax.runs import environment

RESULTS = Path(__file__).parent / "results"
QUICK = "quick"  # the folder inside it for what `--quick` measures, which is no result


def interleaved(
    arms: Mapping[str, Callable[[], Any]], *, repeats: int, seconds: float = 0.2
) -> dict[str, dict[str, Any]]:
    """Times each arm `repeats` times, turn by turn, so that a drifting machine drifts for all.

    An arm is called until `seconds` have passed, after one call that compiles and one that warms
    up, and waits for what it returns.

    Returns:
      By arm: `ms` per call in each round, their `median` and quartiles, and `first_s`, the seconds
      of the first call.
    """
    first, calls = {}, {}
    for name, arm in arms.items():
        begin = time.perf_counter()
        _wait(arm())
        first[name] = time.perf_counter() - begin
        begin = time.perf_counter()
        _wait(arm())
        calls[name] = max(1, round(seconds / max(time.perf_counter() - begin, 1e-6)))
    rounds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                result = arm()
            _wait(result)
            rounds[name].append(1e3 * (time.perf_counter() - begin) / calls[name])
    return {name: {**spread(ms), "first_s": first[name]} for name, ms in rounds.items()}


def spread(ms: list[float]) -> dict[str, Any]:
    """The median and quartiles of some times in milliseconds."""
    low, median, high = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
    return {"median": median, "quartiles": [low, high], "ms": ms}


def paired_ratio(times: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """The median over rounds of one arm's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(times["ms"], base["ms"], strict=True))


def machine() -> dict[str, Any]:
    """What a figure depends on: versions, device, flags, cores and their load."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        **environment(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.date.today().isoformat(),
    }


def save(name: str, title: str, columns: list[str], rows: list[list[str]], data: Any) -> None:
    """Prints a table, and writes it with all that was measured to `results/<name>.json`."""
    show(title, columns, rows)
    store(name, title, columns, rows, data, command=name, on=machine())


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table; its first column is words, the others figures."""
    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left")
    for row in rows:
        drawn.add_row(*row)
    Console(width=140).print(drawn)


def store(
    name: str,
    title: str,
    columns: list[str],
    rows: list[list[str]],
    data: Any,
    *,
    command: str,
    on: Mapping[str, Any],
) -> None:
    """Writes a table and its data, whole or not at all, so that a run stopped damages none.

    Args:
      name: of the file, `<name>.json`.
      command: what to type after `python -m benchmarks` to measure it again.
      on: the `machine()` it was measured on.
    """
    content = {
        "title": title,
        "command": f"python -m benchmarks {command}",
        "machine": on,
        "columns": columns,
        "rows": rows,
        "data": data,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def _wait(result: Any) -> None:
    """Waits for jax's arrays; what PyTorch returns on a CPU is there already."""
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
