"""Time to the first meta step, in a fresh process."""

import json
import statistics
import tempfile

from benchmarks.tables import Table
from benchmarks.timing import printed_by

_START = """
import json, time
begin = time.perf_counter()
import jax
if {cache!r}:
    jax.config.update("jax_compilation_cache_dir", {cache!r})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from benchmarks.speed import workloads
from benchmarks.speed.arms import ours
imported = time.perf_counter()
workload = workloads.few_shot("o15")
arm = ours(workload, workload.tasks(5))
made = time.perf_counter()
jax.block_until_ready(arm())
first = time.perf_counter()
jax.block_until_ready(arm())
second = time.perf_counter()
print(json.dumps([imported - begin, made - imported, first - made, second - first]))
"""


def first_step(quick: bool = False) -> Table:
    """The wait before the first meta step, with and without a compilation cache.

    A fresh process imports the library, makes a network and tasks, and traces, compiles and takes
    a step. The second step shows the time of a step by itself. The command line keeps a
    compilation cache.
    """
    repeats = 1 if quick else 5
    rows, data = [], {}
    with tempfile.TemporaryDirectory() as cache:
        _start(cache)  # fills the cache
        found = {"no cache": [], "compilation cache": []}
        for _ in range(repeats):
            found["no cache"].append(_start(""))
            found["compilation cache"].append(_start(cache))
    for name, runs in found.items():
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        data[name] = runs
        rows.append([name, *(f"{seconds:.2f}" for seconds in medians), f"{sum(medians[:3]):.2f}"])
    return Table(
        "Seconds to the first meta step of o15, in a fresh process",
        ["", "import", "network and tasks", "first step", "second step", "to the first step"],
        rows,
        data,
    )


def _start(cache: str) -> list[float]:
    return json.loads(printed_by(_START.format(cache=cache)))
