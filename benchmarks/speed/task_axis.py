"""How tasks run, how they are drawn, and how many meta steps go into a dispatch."""

import functools

import jax
import jax.numpy as jnp

import reptile_jax as rj
from benchmarks.speed import arms, workloads
from benchmarks.speed.arms import learner_of, ours
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio
from reptile_jax._types import Draws


def choices(quick: bool = False) -> Table:
    """How a meta-batch runs fastest: side by side under `vmap`, in chunks, or one after another.

    The result is the same to rounding. `tasks_at_once` chooses; its default is one on a CPU and
    all tasks elsewhere. The last column compares the speed with one at a time.
    """
    rounds = 2 if quick else 9
    races = (
        ("o15", workloads.few_shot("o15"), 8, (1, 2, 4, 8)),
        ("sinusoid, 5 steps", workloads.sinusoid(steps=5), 5, (1, 5)),
        ("sinusoid, 32 steps", workloads.sinusoid(), 5, (1, 5)),
        ("sinusoid, 32 steps", workloads.sinusoid(), 64, (1, 4, 16, 64)),
        ("sinusoid, 32 steps", workloads.sinusoid(), 1024, (1, 16, 64, 256, 1024)),
    )
    rows, data = [], {}
    for name, workload, number, at_once in races[1:3] if quick else races:
        tasks = workload.tasks(number)
        measured = interleaved({str(n): ours(workload, tasks, n) for n in at_once}, repeats=rounds)
        data[f"{name} x {number}"] = measured
        for n, times in measured.items():
            rows.append(
                [
                    name,
                    f"{number:,}",
                    n,
                    f"{times['median']:.2f}",
                    f"{1e3 * number / times['median']:,.0f}",
                    f"{paired_ratio(measured['1'], times):.2f}",
                ]
            )
    return Table(
        "A meta step by the number of tasks under one vmap",
        ["workload", "tasks", "at once", "ms", "tasks/s", "times as fast"],
        rows,
        data,
    )


def sampling(quick: bool = False) -> Table:
    """What drawing tasks costs, as a share of the meta step that uses them. The aim: under 5%.

    Five tasks are drawn as the step runs them, side by side or one after another. The lower rows
    compare ways to draw the distinct classes of an episode.
    """
    rounds = 2 if quick else 9
    rows, data = [], {}
    images = [workloads.few_shot(name) for name in (("o15",) if quick else ("o15", "m15"))]
    for workload in (*images, workloads.sinusoid()):
        at_once = 5 if workload.name == "sinusoid" else 1
        draw = jax.jit(functools.partial(_draw, at_once))
        keys = jax.random.split(jax.random.key(0), 5)
        tasks = workload.tasks(5)
        measured = interleaved(
            {
                "draw": lambda draw=draw, keys=keys, p=workload.distribution: draw(keys, p),
                "meta step": ours(workload, tasks, at_once),
            },
            repeats=rounds,
        )
        data[workload.name] = measured
        share = paired_ratio(measured["draw"], measured["meta step"])
        rows.append(
            [f"five tasks of {workload.name}", f"{measured['draw']['median']:.3f}", f"{share:.1%}"]
        )
    keys = jax.random.split(jax.random.key(0), 100)
    ways = {
        "partial Fisher-Yates (ours)": lambda key: rj.tasks.draw_distinct(key, 4800, 5),
        "permutation": lambda key: jax.random.permutation(key, 4800)[:5],
        "choice": lambda key: jax.random.choice(key, 4800, (5,), replace=False),
        "top_k of uniforms": lambda key: jax.lax.top_k(jax.random.uniform(key, (4800,)), 5)[1],
    }
    measured = interleaved(
        {name: functools.partial(jax.jit(jax.vmap(way)), keys) for name, way in ways.items()},
        repeats=rounds,
    )
    data["5 of 4,800 classes, 100 tasks"] = measured
    for name, times in measured.items():
        rows.append([f"5 of 4,800 classes, 100 tasks: {name}", f"{times['median']:.3f}", ""])
    return Table(
        "Drawing tasks, as a share of the meta step that uses them",
        ["what", "ms", "of a meta step"],
        rows,
        data,
    )


def _draw(at_once, keys, distribution):
    """What a Reptile step uses of the tasks: it does not draw the query sets."""
    support = lambda key: distribution.sample(key).support
    return jax.vmap(support)(keys) if at_once > 1 else jax.lax.map(support, keys)


def dispatch(quick: bool = False) -> Table:
    """What it costs to return to Python after every meta step, by the meta steps in a dispatch.

    Tasks are drawn on the device. "loop" takes one step at a time and reads its loss, as one first
    writes a training loop.
    """
    rounds, numbers = (2, (1, 2)) if quick else (5, (1, 10, 100))
    rows, data = [], {}
    for workload, at_once in ((workloads.sinusoid(steps=5), 5), (workloads.few_shot("o15"), 1)):
        learner, key = learner_of(workload, at_once), jax.random.key(0)
        stepping = lambda number, learner=learner, workload=workload: arms.dispatching(
            learner, workload, number, 5
        )

        def one_by_one(learner=learner, workload=workload, key=key):
            held = [learner.init(workload.params), 0]
            draw = jax.jit(lambda key: jax.random.split(key, 5))

            def arm():
                keys = draw(jax.random.fold_in(key, held[1]))
                held[0], info = learner.step(held[0], Draws(workload.distribution, keys))
                held[1] += 1
                return float(jnp.mean(info.losses))

            return arm

        measured = interleaved(
            {"loop": one_by_one(), **{str(n): stepping(n) for n in numbers}}, repeats=rounds
        )
        data[workload.name] = measured
        for name, times in measured.items():
            steps = 1 if name == "loop" else int(name)
            each = times["median"] / steps
            rows.append([workload.name, name, f"{each:.3f}", f"{1e3 / each:,.0f}"])
    return Table(
        "Meta steps of five tasks by the number in a dispatch",
        ["workload", "steps per dispatch", "ms per meta step", "meta steps/s"],
        rows,
        data,
    )
