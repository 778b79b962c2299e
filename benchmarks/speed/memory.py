"""Time and memory of the three meta-gradients by inner steps, and memory of large models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from benchmarks.speed import arms, workloads
from benchmarks.tables import Table
from benchmarks.timing import interleaved, printed_by

FAMILY = {"Reptile": rj.reptile, "FOMAML": rj.fomaml, "MAML": rj.maml}


def by_inner_steps(quick: bool = False) -> Table:
    """Time and memory of a meta step by its number of inner steps.

    Reptile and FOMAML keep the activations of one step. MAML differentiates through the inner loop
    and keeps those of all steps. Temporary memory is what the compiled program asks for besides
    its arguments and results. The last column is the growth of a fresh process while it takes the
    compiled step, where the system reports it.
    """
    rounds = 2 if quick else 5
    workload = workloads.few_shot("o15")
    rows, data = [], {}
    for steps in (1, 5) if quick else (1, 5, 10, 25, 50):
        learners = {name: _learner(name, workload) for name in FAMILY}
        tasks = _one_task(workload, steps)
        measured = interleaved(
            {name: arms.stepping(l, workload.params, tasks) for name, l in learners.items()},
            repeats=rounds,
        )
        for name, learner in learners.items():
            compiled = learner.step.lower(learner.init(workload.params), tasks).compile()
            temporary = compiled.memory_analysis().temp_size_in_bytes
            call = f"from benchmarks.speed import memory; print(memory.growth({name!r}, {steps}))"
            grown = float(printed_by(call))
            measured[name] |= {"temporary_bytes": temporary, "grown_bytes": grown}
            cells = [f"{measured[name]['median']:.1f}", f"{temporary / 2**20:.1f}"]
            rows.append([name, str(steps), *cells, f"{grown / 2**20:.1f}" if grown > 0 else ""])
        data[steps] = measured
    return Table(
        "A meta step of one o15 task by its number of inner steps, SGD inside and outside",
        ["meta-gradient", "inner steps", "ms", "temporary MiB", "process grows by MiB"],
        rows,
        data,
    )


def growth(name: str, steps: int) -> int:
    """By how many bytes this process grows in a meta step; -1 where the system does not say."""
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


def _learner(name: str, workload: workloads.Workload) -> rj.MetaLearner:
    return rj.meta_learner(FAMILY[name](workload.loss_fn, optax.sgd(0.01)), optax.sgd(1.0))


def _one_task(workload: workloads.Workload, steps: int) -> rj.Task:
    batches = workload.tasks(1).support
    tile = lambda leaf: jnp.concatenate([leaf] * -(-steps // 5), axis=1)[:, :steps]
    return rj.Task(jax.tree.map(tile, batches), jax.tree.map(lambda leaf: leaf[:, 0], batches))


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


def large_model(quick: bool = False) -> Table:
    """How large a model fits: the process's peak memory as a multiple of the parameters' size.

    The aim: at most 6. Memory that the process used before it made the parameters does not count.
    """
    rows, data = [], []
    for width in (500,) if quick else (1250, 2500, 5000):
        found = json.loads(printed_by(_LARGE, str(width)))
        data.append(found)
        multiple = found["bytes"] / (4 * found["parameters"])
        rows.append(
            [
                f"{found['parameters'] / 1e6:.1f}",
                f"{found['bytes'] / 2**20:,.0f}",
                f"{multiple:.1f}",
            ]
        )
    return Table(
        "Peak memory of three tasks one after another, five inner steps, SGD inside and outside",
        ["million parameters", "peak MiB", "times the parameters"],
        rows,
        data,
    )
