"""Cost and memory of the family against the number of inner steps, and of large models."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from benchmarks import arms, measure, workloads
from reptile_jax import MetaLearner, Task, fomaml, maml, meta_learner, reptile

FAMILY = {"Reptile": reptile, "FOMAML": fomaml, "MAML": maml}


def memory(quick: bool = False) -> None:
    """Time and memory of a meta step by its number of inner steps.

    Reptile and FOMAML keep one step's activations, whatever their number; MAML differentiates
    through the inner loop and keeps those of all. Temporary memory is what the compiled program
    asks for besides its arguments and results; beside it stands by how much a fresh process grows
    while it takes the step, once all is compiled, where the system tells.
    """
    rounds = 2 if quick else 5
    workload = workloads.few_shot("o15")
    rows, data = [], {}
    for steps in (1, 5) if quick else (1, 5, 10, 25, 50):
        learners = {name: _learner(name, workload) for name in FAMILY}
        tasks = _one_task(workload, steps)
        measured = measure.interleaved(
            {name: arms.stepping(l, workload.params, tasks) for name, l in learners.items()},
            repeats=rounds,
        )
        for name, learner in learners.items():
            compiled = learner.step.lower(learner.init(workload.params), tasks).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            call = f"from benchmarks import family; print(family.growth({name!r}, {steps}))"
            grown = float(_in_a_process(call))
            measured[name] |= {"temporary_bytes": temporary, "grown_bytes": grown}
            cells = [f"{measured[name]['median']:.1f}", f"{temporary / 2**20:.1f}"]
            rows.append([name, str(steps), *cells, f"{grown / 2**20:.1f}" if grown > 0 else ""])
        data[steps] = measured
    measure.save(
        "memory",
        "A meta step of one o15 task by its number of inner steps, SGD inside and outside",
        ["meta-gradient", "inner steps", "ms", "temporary MiB", "process grows by MiB"],
        rows,
        data,
    )


def growth(name: str, steps: int) -> int:
    """Bytes by which this process peaks above what it held, in a meta step; -1 if not to be had."""
    workload = workloads.few_shot("o15")
    learner, tasks = _learner(name, workload), _one_task(workload, steps)
    state = learner.init(workload.params)
    compiled = learner.step.lower(state, tasks).compile()
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        jax.block_until_ready(compiled(state, tasks))
        return max(0, _status("VmHWM") - before)
    except OSError:
        return -1


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _learner(name: str, workload: workloads.Workload) -> MetaLearner:
    return meta_learner(FAMILY[name](workload.loss_fn, optax.sgd(0.01)), optax.sgd(1.0))


def _one_task(workload: workloads.Workload, steps: int) -> Task:
    batches = workload.tasks(1).support
    tile = lambda leaf: jnp.concatenate([leaf] * -(-steps // 5), axis=1)[:, :steps]
    return Task(jax.tree.map(tile, batches), jax.tree.map(lambda leaf: leaf[:, 0], batches))


def _in_a_process(code: str, *argv: str) -> str:
    """The last line that a fresh process prints."""
    out = subprocess.run(
        [sys.executable, "-c", code, *argv],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    return out.stdout.splitlines()[-1]


_LARGE = """
import json, resource, sys
import jax, jax.numpy as jnp, numpy as np, optax
import reptile_jax as rj
width, layers = int(sys.argv[1]), 4
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def loss_fn(params, batch):
    x = batch
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(x**2)
learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(1e-3)), optax.sgd(0.5))
before = peak()
state = learner.init([np.full((width, width), 1e-3, np.float32) for _ in range(layers)])
tasks = rj.Task(jnp.ones((3, 5, 8, width)))
for _ in range(2):
    state, info = learner.step(state, tasks)
jax.block_until_ready(info)
print(json.dumps({"parameters": layers * width**2, "bytes": peak() - before}))
"""


def large_model(quick: bool = False) -> None:
    """How large a model fits: the process's peak memory as a multiple of the parameters' size.

    At most 6 is aimed at. What the process held before it made the parameters is taken off.
    """
    rows, data = [], []
    for width in (500,) if quick else (1250, 2500, 5000):
        found = json.loads(_in_a_process(_LARGE, str(width)))
        data.append(found)
        multiple = found["bytes"] / (4 * found["parameters"])
        rows.append(
            [
                f"{found['parameters'] / 1e6:.1f}",
                f"{found['bytes'] / 2**20:,.0f}",
                f"{multiple:.1f}",
            ]
        )
    measure.save(
        "large_model",
        "Peak memory of three tasks one after another, five inner steps, SGD inside and outside",
        ["million parameters", "peak MiB", "times the parameters"],
        rows,
        data,
    )
