"""A small meta-training that `test_processes.py` runs in one process or in several."""

import contextlib
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from reptile_jax import checkpoint, processes
from reptile_jax.devices import replicate
from reptile_jax.sinusoids import sinusoids
from reptile_jax.train import train


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs * params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - batch.targets) ** 2)


@functools.cache
def learner_on(mesh):
    return rj.meta_learner(
        rj.reptile(loss_fn, optax.adam(0.01)),
        optax.sgd(0.5, momentum=0.5),
        inner_state="averaged",
        mesh=mesh,
    )


def first_state(learner):
    w1, w2 = np.random.default_rng(0).normal(size=(2, 5))
    return learner.init({"w1": w1[None], "b1": 0.1 * w1[None], "w2": w2[:, None]})


def run(folder: Path, mesh, until: int) -> rj.MetaState:
    """Trains to the step `until`, from the checkpoint if there is one; saves on the way."""
    learner = learner_on(mesh)
    state = first_state(learner)
    if (folder / "checkpoints").is_dir():
        state = checkpoint.restore(folder / "checkpoints", state)
    distribution, key = sinusoids(steps=3, batch_size=4), jax.random.key(1)
    loop = train(learner, state, distribution, key, until=until, meta_batch=5, steps_per_dispatch=4)
    for state, _ in loop:
        if int(state.step) == until or int(state.step) % 20 == 0:
            checkpoint.save(folder / "checkpoints", state)
    return state


if __name__ == "__main__":
    index, number, coordinator, folder, until = sys.argv[1:]
    sharing = processes.Sharing(2, True, coordinator, int(number), int(index))
    jax.config.update("jax_enable_x64", True)
    with processes.joined(sharing, Path(folder)) as (mesh, own):
        with contextlib.suppress(ValueError):
            replicate(np.full(3, jax.process_index()), mesh)
            raise SystemExit("arrays that differ between processes were taken")
        run(own, mesh, int(until))
