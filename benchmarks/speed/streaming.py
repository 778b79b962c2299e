"""Inner steps on mini-batches from the host, against the same steps in one scan."""

from collections.abc import Iterator

import jax
import numpy as np

import reptile_jax as rj
from benchmarks.speed import workloads
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio

IMAGES = 25  # in a mini-batch


def inner_steps(quick: bool = False) -> Table:
    """The speed of an inner loop whose mini-batches come from a Python iterator.

    An arm takes 100 steps: one scan of mini-batches that are on the device beforehand, or so many
    dispatches of a stream that has begun before. The aim: at least 95% of the scan's speed. The
    network is o15's; a mini-batch has 25 images, which the iterator gathers in the host's memory.
    """
    steps, rounds = (20, 2) if quick else (100, 41)
    workload = workloads.few_shot("o15")
    loss_fn, optimizer, params = workload.loss_fn, workload.inner_optimizer, workload.params
    (first,) = (
        rj.tasks.few_shot(
            workload.distribution.classes, ways=5, shots=5, steps=1, batch_size=IMAGES
        )
        .sample(jax.random.key(0))
        .support.inputs
    )
    images = np.random.default_rng(0).permutation(np.asarray(first))
    targets = np.arange(IMAGES, dtype=np.int32) % 5

    def batches() -> Iterator[rj.Batch]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(IMAGES)
            yield rj.Batch(images[order], targets[order])

    given = [batch for batch, _ in zip(batches(), range(steps), strict=False)]
    there = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *given))
    whole = jax.jit(lambda params, batches: rj.inner_loop(loss_fn, optimizer, params, batches))

    def stream(number: int):
        start, until = rj.start_task(optimizer, params), 2**31 - 1
        dispatches = rj.stream(
            loss_fn, optimizer, start, batches(), until=until, steps_per_dispatch=number
        )
        return lambda: [next(dispatches)[1] for _ in range(steps // number)][-1]

    arms = {"one scan": lambda: whole(params, there)}
    for number in (1, 5, 20, 100) if not quick else (1, 10):
        arms[f"streamed, {number} to a dispatch"] = stream(number)
    measured = interleaved(arms, repeats=rounds, seconds=0)
    rows = []
    for name, times in measured.items():
        speed = 1 / paired_ratio(times, measured["one scan"])
        rows.append([name, f"{times['median'] / steps:.2f}", f"{speed:.1%}"])
    title = f"{steps} inner steps of {IMAGES} images, in o15's network"
    return Table(title, ["arm", "ms per step", "of the speed of one scan"], rows, measured)
