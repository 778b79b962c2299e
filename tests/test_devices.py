"""However many devices share a meta-batch, the meta step is that of one."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from reptile_jax._types import Draws
from reptile_jax.nn import MLP, ConvNet, cross_entropy, squared_error
from reptile_jax.tasks import sinusoids
from tests.conftest import outside_strict


def mesh_of(number):
    return rj.task_mesh(jax.devices()[:number])


def loss_fn(params, batch):
    # A loop that starts from zeros, as losses of recurrent networks have it.
    step = lambda total, row: (total + row @ params["w1"], None)
    total, _ = jax.lax.scan(step, jnp.zeros(5, batch.inputs.dtype), batch.inputs)
    hidden = jnp.tanh(batch.inputs @ params["w1"] + 0.1 * total[None])
    return jnp.mean((hidden @ params["w2"] - batch.targets) ** 2)


def params():
    rng = np.random.default_rng(0)
    return {"w1": rng.normal(size=(2, 5)), "w2": rng.normal(size=(5, 1))}


def tasks(num_tasks):
    """Tasks with weights, of which the second diverges."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(num_tasks, 3, 4, 2))
    targets = np.sin(inputs[..., :1] * 2)
    query = rj.Batch(inputs[:, 0] * 0.5, targets[:, 0])
    targets[1:2, 2] = np.inf
    return rj.Task(rj.Batch(inputs, targets), query, weight=rng.uniform(0.5, 2, num_tasks))


def two_steps(batch, mesh=None, sibling=rj.reptile, **options):
    inner = outside_strict(optax.adam(0.05, b1=0.5, b2=0.9))
    outer = optax.sgd(0.5, momentum=0.9)
    learner = rj.meta_learner(sibling(loss_fn, inner), outer, mesh=mesh, **options)
    state, first = learner.step(learner.init(params()), batch)
    state, second = learner.step(state, batch)
    return state, (first, second)


def on_every_device(tree, number):
    """The tree as it is on the first device, once all devices are seen to hold the same bits."""
    for leaf in jax.tree.leaves(tree):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == number
        for copy in copies:
            assert copy.shape == leaf.shape
            np.testing.assert_array_equal(copy, copies[0])
    return jax.device_get(tree)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("sibling", "inner_opt_state", "num_tasks", "at_once", "devices"),
    [
        (rj.reptile, "average", 5, 1, (1, 2, 3, 8)),
        (rj.reptile, "average", 7, 2, (3,)),
        (rj.reptile, "reset", 8, 8, (2, 8)),
        (rj.maml, "average", 4, 2, (3,)),
        (rj.reptile, "average", 1, 1, (2,)),
    ],
)
def test_any_number_of_devices_takes_the_meta_step_of_one(
    sibling, inner_opt_state, num_tasks, at_once, devices
):
    batch = tasks(num_tasks)
    options = {"sibling": sibling, "inner_opt_state": inner_opt_state, "tasks_at_once": at_once}
    expected = jax.device_get(two_steps(batch, **options))
    assert expected[1][0].finite.sum() == max(num_tasks - 1, 1)
    for number in devices:
        result = on_every_device(two_steps(batch, mesh_of(number), **options), number)
        chex.assert_trees_all_close(result, expected, rtol=1e-11)


def test_losses_that_are_not_finite_are_reported_as_they_are():
    losses = lambda params, batch: params["w"] * batch.inputs[0]
    learner = rj.meta_learner(rj.reptile(losses, optax.sgd(0.0)), optax.sgd(1.0), mesh=mesh_of(3))
    found = np.float32([np.nan, np.inf, -np.inf, 1e-30, -0.0, 3e38, 2.0])
    batch = rj.Task(rj.Batch(found.reshape(7, 1, 1), None))
    state = learner.init({"w": jnp.ones((), jnp.float32)})
    _, info = learner.step(state, batch)
    np.testing.assert_array_equal(info.finite, [False, False, False, True, True, True, True])
    np.testing.assert_allclose(info.losses[:, 0], found)


def test_counts_that_differ_between_tasks_do_not_drive_the_devices_apart():
    first = {"count": jnp.int32(7), "moment": jnp.ones(2)}

    def compute(params, opt_state, task):
        number = task.support.inputs[0, 0]
        ended = {"count": number, "moment": opt_state["moment"] * 3}
        return rj.TaskGradient(params, ended, jnp.zeros(1))

    sibling = rj.MetaGradient(lambda params: first, compute)
    numbers = jnp.array([8, 70_007, 9, 17, 260], jnp.int32)
    learner = rj.meta_learner(
        sibling, optax.sgd(1.0), inner_opt_state="average", mesh=mesh_of(3), donate=False
    )
    state = learner.init({"w": jnp.ones(2)})
    after, info = learner.step(state, rj.Task(rj.Batch(numbers[:, None, None], None)))
    ended = on_every_device((after, info), 3)[0].inner_opt_state
    assert ended["count"] == 7 + round((1 + 70_000 + 2 + 10 + 253) / 5)
    np.testing.assert_array_equal(ended["moment"], [3, 3])


@pytest.mark.slow
def test_a_run_on_many_devices_is_the_run_on_one():
    """The same draws; and what comes from elsewhere, such as a restored state, finds its place."""
    model = MLP((8, 1))
    start = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    sibling = rj.reptile(squared_error(model.apply), optax.sgd(0.02))

    def run(mesh):
        learner = rj.meta_learner(sibling, optax.sgd(0.5), mesh=mesh)
        state = jax.tree.map(jnp.asarray, jax.device_get(learner.init(start)))
        loop = rj.train(
            learner, state, sinusoids(), jax.random.key(5), until=4, meta_batch=5,
            steps_per_dispatch=2,
        )  # fmt: skip
        *_, (state, infos) = loop
        return state, infos

    expected = jax.device_get(run(None))
    found = on_every_device(run(mesh_of(3)), 3)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_evaluation_on_many_devices_is_that_on_one():
    model = MLP((8, 1))
    start = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    loss = squared_error(model.apply)
    waves = sinusoids(shots=5, steps=2, batch_size=5)
    run = lambda mesh, **options: rj.evaluate(
        loss,
        lambda params, task: {"error": loss(params, task.query)},
        optax.sgd(0.02),
        start,
        waves,
        jax.random.key(1),
        num_tasks=10,
        tasks_per_dispatch=5,
        mesh=mesh,
        **options,
    )
    expected = run(None)
    chex.assert_trees_all_close(run(mesh_of(3), tasks_at_once=2), expected, rtol=1e-4)


def test_plain_numbers_are_put_on_every_device_too():
    assert on_every_device(rj.replicate({"h": 2.0, "n": 3}, mesh_of(2)), 2) == {"h": 2.0, "n": 3}


def test_meshes_that_cannot_be_used_are_refused():
    sibling, outer = rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0)
    devices = np.array(jax.devices())
    for mesh in (
        jax.sharding.Mesh(devices, ("data",)),
        jax.sharding.Mesh(devices.reshape(4, 2), ("tasks", "model")),
    ):
        with pytest.raises(ValueError, match='needs one axis, named "tasks"'):
            rj.meta_learner(sibling, outer, mesh=mesh)
    with pytest.raises(ValueError, match="on one device, which a mesh of 8 devices does not"):
        rj.meta_learner(sibling, outer, inner_opt_state="carry", mesh=mesh_of(8))
    rj.meta_learner(sibling, outer, inner_opt_state="carry", mesh=mesh_of(1))
    learner = rj.meta_learner(sibling, outer, inner_opt_state="average", donate=False)
    state = learner.init(jax.tree.map(np.float32, params()))
    batch = jax.tree.map(np.float32, tasks(2))
    with pytest.raises(ValueError, match="on one device, which a mesh of 2 devices does not"):
        rj.meta_step(sibling, outer, state, batch, inner_opt_state="carry", mesh=mesh_of(2))


@pytest.mark.usefixtures("x64")
def test_a_mesh_made_by_jax_does_as_well():
    """Its axes are of the explicit kind."""
    mesh = jax.make_mesh((8,), ("tasks",))
    chex.assert_trees_all_equal(two_steps(tasks(8), mesh), two_steps(tasks(8), mesh_of(8)))


@pytest.fixture(scope="module")
def convolutional():
    """The library's own convolution, batch norm and Adam's averaged state, on three devices."""
    model = ConvNet(3, features=4, pool=False, blocks=2)
    images = jnp.zeros((1, 8, 8, 1))
    sibling = rj.reptile(cross_entropy(model.apply), outside_strict(optax.adam(0.01, b1=0.0)))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 2, 6, 8, 8, 1)).astype(np.float32)
    batch = rj.Task(rj.Batch(inputs, rng.integers(0, 3, (4, 2, 6)).astype(np.int32)))
    start = jax.jit(model.init)(jax.random.key(0), images)
    learner_on = lambda mesh: rj.meta_learner(
        sibling, optax.sgd(1.0), inner_opt_state="average", mesh=mesh
    )
    return learner_on, start, batch


@pytest.mark.slow
def test_convolutional_networks_take_the_same_meta_step(convolutional):
    learner_on, start, batch = convolutional
    results = []
    for mesh in (None, mesh_of(3)):
        learner = learner_on(mesh)
        results.append(learner.step(learner.init(start), batch))
    chex.assert_trees_all_close(
        on_every_device(results[1], 3), jax.device_get(results[0]), rtol=1e-3, atol=1e-5
    )


def test_one_all_reduce_a_meta_step_and_nothing_gathered(convolutional):
    learner_on, start, batch = convolutional
    learner = learner_on(mesh_of(3))
    state = learner.init(start)
    draws = Draws(Held(batch), jax.random.split(jax.random.key(0), 4))
    program = learner.step.lower(state, draws).compile()
    text = program.as_text()
    exchanged = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[a-z-]*\(", text)
    assert exchanged == ["all-reduce"]
    (line,) = [line for line in text.splitlines() if " all-reduce(" in line]
    assert "/while/" not in line  # not in the inner loop, nor in that over tasks
    # Gradients, the inner optimiser's state, the weight; of all six tasks, padding included, two
    # losses and whether they are finite. Nothing the size of a batch of images.
    size = sum(leaf.size for leaf in jax.tree.leaves((start, state.inner_opt_state)))
    assert f"f32[{size + 1 + 6 * 2 + 6}]" in line
    donated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= donated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """Tasks held in arrays, and drawn from: as large as a data set."""

    tasks: rj.Task

    def sample(self, key):
        number = jax.random.randint(key, (), 0, 4)
        return jax.tree.map(lambda leaf: leaf[number], self.tasks)
