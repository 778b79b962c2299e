"""Timing: arms that take turns, and work in fresh processes."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parent.parent


def interleaved(
    arms: Mapping[str, Callable[[], Any]], *, repeats: int, seconds: float = 0.2
) -> dict[str, dict[str, Any]]:
    """Times each arm `repeats` times, turn by turn, so that a drifting machine drifts for all.

    The first call of an arm compiles and the second warms up. After that a round calls the arm
    until `seconds` have passed and waits for what it returns.

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


def printed_by(code: str, *argv: str) -> str:
    """The last line that a fresh process prints when it runs `code`."""
    out = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return out.stdout.splitlines()[-1]


def process(*argv: str, flags: str = "", **more: Any) -> subprocess.Popen:
    """A fresh Python process, whose output is read here, with more of XLA's flags."""
    more["env"] = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        **more.get("env", {}),
    }
    return subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True, **more
    )


def _wait(result: Any) -> None:
    """Waits for JAX's arrays; PyTorch's are there on return on a CPU."""
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)])
