"""A small meta-training that `test_processes` runs in one process or in several."""

import contextlib
import functools
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import reptile_jax as rj
from reptile_jax.app import processes


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs * params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - batch.targets) ** 2)


@functools.cache
def learner_on(mesh):
    return rj.meta_learner(
        rj.reptile(loss_fn, optax.adam(0.01)),
        optax.sgd(0.5, momentum=0.5),
        inner_opt_state="average",
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
        state = rj.checkpoint.restore(folder / "checkpoints", state)
    waves, key = rj.tasks.sinusoids(steps=3, batch_size=4), jax.random.key(1)
    loop = rj.train(learner, state, waves, key, until=until, meta_batch=5, steps_per_dispatch=4)
    for state, _ in loop:
        if int(state.step) == until or int(state.step) % 20 == 0:
            rj.checkpoint.save(folder / "checkpoints", state)
    return state


def check_arrays_of_many_processes(mesh) -> None:
    """A meta step on one meta-batch, whose tasks the processes hold a part each."""
    task = rj.tasks.sinusoids(steps=3, batch_size=4).sample
    tasks = jax.device_get(jax.vmap(task)(jax.random.split(jax.random.key(2), mesh.size)))
    here = slice(*(jax.local_device_count() * (jax.process_index() + i) for i in (0, 1)))
    share = NamedSharding(mesh, PartitionSpec("tasks"))
    spanning = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(share, leaf[here]), tasks
    )
    states = []
    for learner, given in ((learner_on(None), tasks), (learner_on(mesh), spanning)):
        state, _ = learner.step(first_state(learner), given)
        states.append(jax.device_get(state.params))
    chex.assert_trees_all_close(*states, rtol=1e-9)


def check_a_model_of_many_processes(mesh, folder: Path) -> None:
    """A model whose parts are in different processes: trained, saved, restored, trained on."""
    devices = mesh.devices.reshape(jax.process_count(), -1)
    both = Mesh(devices, ("model", "tasks"))
    waves, key = rj.tasks.sinusoids(steps=3, batch_size=4), jax.random.key(1)
    specs = {"w1": (None, "model"), "b1": (None, "model"), "w2": ("model", None)}

    def first(learner):
        w1, w2 = np.random.default_rng(0).normal(size=(2, 6))
        params = {"w1": w1[None], "b1": 0.1 * w1[None], "w2": w2[:, None]}
        if learner.mesh is not None:
            place = lambda leaf, spec: jax.make_array_from_callback(
                leaf.shape, NamedSharding(both, PartitionSpec(*spec)), leaf.__getitem__
            )
            params = {name: place(leaf, specs[name]) for name, leaf in params.items()}
        return learner.init(params)

    def train(learner, state, until):
        how = {"until": until, "meta_batch": 5, "steps_per_dispatch": 4}
        *_, (state, _) = rj.train(learner, state, waves, key, **how)
        return state

    alone, divided = learner_on(None), learner_on(both)
    expected = train(alone, first(alone), 8)
    rj.checkpoint.save(folder, train(divided, first(divided), 4))
    multihost_utils.sync_global_devices("saved")
    restored = rj.checkpoint.restore(folder, like=first(divided))
    ended = train(divided, restored, 8)
    for tree in (restored.params, ended.params, ended.opt_state[0].trace):
        for name, spec in specs.items():
            assert tuple(tree[name].sharding.spec) in (spec, spec[:1]), (name, tree[name].sharding)
    gather = lambda leaf: multihost_utils.process_allgather(leaf, tiled=True)
    chex.assert_trees_all_close(jax.tree.map(gather, ended), jax.device_get(expected), rtol=1e-9)


if __name__ == "__main__":
    index, number, coordinator, folder, until = sys.argv[1:]
    sharing = processes.Sharing(2, True, coordinator, int(number), int(index))
    jax.config.update("jax_enable_x64", True)
    with processes.joined(sharing, Path(folder)) as (mesh, own):
        with contextlib.suppress(ValueError):
            rj.replicate(np.full(3, jax.process_index()), mesh)
            raise SystemExit("arrays that differ between processes were taken")
        check_arrays_of_many_processes(mesh)
        check_a_model_of_many_processes(mesh, Path(folder) / "divided")
        run(own, mesh, int(until))
