"""How tasks run, how they are drawn, and how many meta steps go into a dispatch."""

import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure, workloads
from benchmarks.throughput import ours
from reptile_jax import Draws, fewshot, meta_learner, reptile
from reptile_jax.train import meta_steps


def choices(quick: bool = False) -> None:
    """Tasks side by side, in chunks, or one after another."""
    rounds = 2 if quick else 9
    rows, data = [], {}
    for workload, number, at_once in (
        (workloads.few_shot("o15"), 8, (1, 2, 4, 8)),
        (workloads.sinusoid(), 64, (1, 4, 16, 64)),
        (workloads.sinusoid(), 1024, (16, 64, 1024)),
    ):
        tasks = workload.tasks(number)
        measured = measure.interleaved(
            {str(n): ours(workload, tasks, n) for n in at_once}, repeats=rounds
        )
        data[f"{workload.name} x {number}"] = measured
        for n, times in measured.items():
            per_second = f"{1e3 * number / times['median']:,.0f}"
            rows.append([workload.name, str(number), n, f"{times['median']:.1f}", per_second])
    measure.save(
        "task_axis",
        "A meta step by the number of tasks under one vmap",
        ["workload", "tasks", "at once", "ms", "tasks/s"],
        rows,
        data,
    )


def sampling(quick: bool = False) -> None:
    """What drawing tasks costs, and the ways to draw distinct classes."""
    rounds = 2 if quick else 9
    rows, data = [], {}
    for workload in (workloads.few_shot("o15"), workloads.few_shot("m15"), workloads.sinusoid()):
        draw = jax.jit(lambda keys, distribution: jax.lax.map(distribution.sample, keys))
        keys = jax.random.split(jax.random.key(0), 5)
        tasks = workload.tasks(5)
        measured = measure.interleaved(
            {
                "draw": lambda draw=draw, keys=keys, p=workload.distribution: draw(keys, p),
                "meta step": ours(workload, tasks),
            },
            repeats=rounds,
        )
        data[workload.name] = measured
        share = measure.paired_ratio(measured["draw"], measured["meta step"])
        rows.append(
            [f"five tasks of {workload.name}", f"{measured['draw']['median']:.3f}", f"{share:.1%}"]
        )
    keys = jax.random.split(jax.random.key(0), 100)
    ways = {
        "partial Fisher-Yates (ours)": lambda key: fewshot.draw_distinct(key, 4800, 5),
        "permutation": lambda key: jax.random.permutation(key, 4800)[:5],
        "choice": lambda key: jax.random.choice(key, 4800, (5,), replace=False),
        "top_k of uniforms": lambda key: jax.lax.top_k(jax.random.uniform(key, (4800,)), 5)[1],
    }
    measured = measure.interleaved(
        {name: functools.partial(jax.jit(jax.vmap(way)), keys) for name, way in ways.items()},
        repeats=rounds,
    )
    data["5 of 4,800 classes, 100 tasks"] = measured
    for name, times in measured.items():
        rows.append([f"5 of 4,800 classes, 100 tasks: {name}", f"{times['median']:.3f}", ""])
    measure.save(
        "sampling",
        "Drawing tasks, as a share of the meta step that uses them",
        ["what", "ms", "of a meta step"],
        rows,
        data,
    )


def dispatch(quick: bool = False) -> None:
    """Meta steps per dispatch, tasks drawn on the device."""
    rounds = 2 if quick else 7
    rows, data = [], {}
    for workload, at_once in ((workloads.sinusoid(steps=5), 5), (workloads.few_shot("o15"), 1)):
        learner = meta_learner(
            reptile(workload.loss_fn, workload.inner_optimizer),
            optax.sgd(1.0),
            inner_state=workload.inner_state,
            tasks_at_once=at_once,
        )
        key = jax.random.key(0)

        def stepping(number, learner=learner, workload=workload, key=key):
            held = [learner.init(workload.params)]

            def arm():
                state, infos = meta_steps(
                    learner,
                    held.pop(),
                    workload.distribution,
                    key,
                    num_steps=number,
                    meta_batch=5,
                )
                held.append(state)
                return infos

            return arm

        def one_by_one(learner=learner, workload=workload, key=key):
            """A step at a time, and its loss read: a training loop as it is written first."""
            held = [learner.init(workload.params), 0]
            draw = jax.jit(lambda key: jax.random.split(key, 5))

            def arm():
                keys = draw(jax.random.fold_in(key, held[1]))
                held[0], info = learner.step(held[0], Draws(workload.distribution, keys))
                held[1] += 1
                return float(jnp.mean(info.losses))

            return arm

        numbers = (1, 10, 100)
        measured = measure.interleaved(
            {"loop": one_by_one(), **{str(n): stepping(n) for n in numbers}}, repeats=rounds
        )
        data[workload.name] = measured
        for name, times in measured.items():
            steps = 1 if name == "loop" else int(name)
            each = times["median"] / steps
            rows.append([workload.name, name, f"{each:.3f}", f"{1e3 / each:,.0f}"])
    measure.save(
        "dispatch",
        "Meta steps of five tasks by the number in a dispatch",
        ["workload", "steps per dispatch", "ms per meta step", "meta steps/s"],
        rows,
        data,
    )
