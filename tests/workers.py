"""Reptile as a distributed algorithm, as `test_streaming` runs it in one process or in several.

Each process runs inner steps on a stream of its own, and a meta step is one exchange. Everything is
saved on the way, so that a process may be killed at any time.
"""

import contextlib
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj

STEPS, PER_DISPATCH, META_STEPS = 23, 5, 4
INNER = optax.adam(0.02, b1=0.5)


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w"] + params["b"][None])
    return jnp.mean((hidden @ params["v"] - batch.targets) ** 2)


def learner_on(mesh):
    outer = optax.sgd(0.5, momentum=0.5)
    return rj.meta_learner(rj.reptile(loss_fn, INNER), outer, inner_opt_state="average", mesh=mesh)


def first_params():
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 16), "b": (16,), "v": (16, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def batches(meta_step, worker, start=0, stop=STEPS):
    """The worker's stream of a meta step, from a mini-batch on."""
    for number in range(start, stop):
        rng = np.random.default_rng([meta_step, worker, number])
        inputs = rng.normal(size=(4, 3)).astype(np.float32)
        yield rj.Batch(inputs, np.sin(inputs[:, :2] + worker))


def restored(folder, like):
    with contextlib.suppress(FileNotFoundError):
        return rj.checkpoint.restore(folder, like)
    return like


def slowly(stream, folder, meta_step, worker):
    """A stream that waits until the other worker has taken its steps, turn by turn.

    If that one waited for this one in its inner loop, none would ever end.
    """
    while meta_step % 2 == worker and not (folder / f"{1 - worker}-took-{meta_step}").exists():
        time.sleep(0.01)
    yield from stream


def failing(stream, worker):
    for number, batch in enumerate(stream):
        if worker == 1 and number == STEPS // 2:
            raise OSError("the disk of worker 1 is gone")
        yield batch


def work(folder: Path, worker: int, mesh, how: str = "") -> rj.MetaState:
    """Trains until `META_STEPS`, from where it was left."""
    learner = learner_on(mesh)
    state = rj.replicate(restored(folder / "meta", learner.init(first_params())), mesh)
    own = folder / f"worker-{worker}"
    while (meta_step := int(state.step)) < META_STEPS:
        at = own / str(meta_step)
        task = restored(at, rj.start_task(INNER, state.params, state.inner_opt_state))
        stream = batches(meta_step, worker, int(task.step))
        if how == "slowly":
            stream = slowly(stream, folder, meta_step, worker)
        if how == "failing":
            stream = failing(stream, worker)
        task_steps = rj.stream(
            loss_fn, INNER, task, stream, until=STEPS, steps_per_dispatch=PER_DISPATCH
        )
        for task, _ in task_steps:
            rj.checkpoint.save(at, task)
            if how == "endless" and meta_step == 2 and int(task.step) > STEPS // 2:
                time.sleep(600)
        (folder / f"{worker}-took-{meta_step}").touch()
        state, _ = learner.step(state, rj.streamed(task, mesh=mesh))
        rj.checkpoint.save(folder / "meta", state)
        shutil.rmtree(at)
    return state


if __name__ == "__main__":
    index, number, coordinator, folder, how = sys.argv[1:]
    if int(number) > 1:
        jax.distributed.initialize(
            coordinator,
            int(number),
            int(index),
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=10,
        )
    work(Path(folder), int(index), rj.task_mesh() if int(number) > 1 else None, how)
