"""However many devices share a meta-batch, the meta step is that of one."""

import contextlib
import dataclasses
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import reptile_jax as rj
from reptile_jax._types import Draws
from reptile_jax.nn import MLP, ConvNet, cross_entropy, squared_error
from reptile_jax.tasks import sinusoids
from tests.conftest import outside_strict

KEY = jax.random.key(5)


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


def test_shapes_are_placed_for_devices_that_programs_are_compiled_for():
    """With no array put anywhere, also where arrays are among the shapes."""
    shape = jax.eval_shape(lambda: jnp.zeros((2, 3)))
    for number in (1, 2):
        placed = rj.replicate({"shape": shape, "key": KEY}, mesh_of(number))
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in placed.values())
        assert {leaf.sharding.num_devices for leaf in placed.values()} == {number}
        assert all(leaf.sharding.is_fully_replicated for leaf in placed.values())
        assert (placed["shape"].shape, placed["shape"].dtype) == ((2, 3), jnp.float32)
        assert placed["key"].dtype == KEY.dtype
    assert rj.replicate(shape, None) is shape


@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_is_compiled_from_shapes_alone(devices):
    mesh = mesh_of(devices)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0), mesh=mesh)
    state = jax.eval_shape(learner.init, params())
    tasks = rj.Task(rj.Batch(jnp.ones((4, 3, 5, 2)), jnp.ones((4, 3, 5, 1))))
    compiled = learner.step.lower(*rj.replicate((state, tasks), mesh)).compile()
    where = {
        device for leaf in jax.tree.leaves(compiled.input_shardings) for device in leaf.device_set
    }
    assert where == set(mesh.devices.flat)
    assert learner.step.trace(state, tasks).jaxpr.in_avals


def test_meshes_that_cannot_be_used_are_refused():
    sibling, outer = rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0)
    devices = np.array(jax.devices())
    for mesh in (
        jax.sharding.Mesh(devices, ("data",)),
        jax.sharding.Mesh(devices.reshape(4, 2), ("data", "model")),
    ):
        with pytest.raises(ValueError, match='needs one named "tasks"'):
            rj.meta_learner(sibling, outer, mesh=mesh)
    with pytest.raises(ValueError, match="on one device, which a mesh of 8 parts does not"):
        rj.meta_learner(sibling, outer, inner_opt_state="carry", mesh=mesh_of(8))
    rj.meta_learner(sibling, outer, inner_opt_state="carry", mesh=mesh_of(1))
    learner = rj.meta_learner(sibling, outer, inner_opt_state="average", donate=False)
    state = learner.init(jax.tree.map(np.float32, params()))
    batch = jax.tree.map(np.float32, tasks(2))
    with pytest.raises(ValueError, match="on one device, which a mesh of 2 parts does not"):
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
    # Gradients, the inner optimiser's state and the weight; of all six tasks, padding included, two
    # losses and whether they are finite. Nothing the size of a batch of images.
    size = sum(leaf.size for leaf in jax.tree.leaves((start, state.inner_opt_state)))
    shapes = re.findall(r"f32\[([\d,]*)\]", line.partition(" all-reduce(")[0])
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    assert sum(sizes) == size + 1 + 6 * 2 + 6
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


def around(kind, axis="tasks"):
    """A mesh of all eight devices for `jax.set_mesh`."""
    return jax.make_mesh((8,), (axis,), axis_types=(kind,))


def whole_program(mesh, folder):
    """All that a program does, on the mesh: train, step, evaluate, save and restore."""
    model = MLP((8, 1))
    start = model.init(jax.random.key(0), jnp.zeros((1, 1)))
    loss, waves, key = squared_error(model.apply), sinusoids(shots=4, steps=2, batch_size=4), 3
    sibling = rj.reptile(loss, outside_strict(optax.adam(0.01)))
    learner = rj.meta_learner(
        sibling, optax.sgd(0.5), inner_opt_state="average", mesh=mesh, donate=False
    )
    state = learner.init(start)
    loop = rj.train(
        learner, state, waves, jax.random.key(key), until=2, meta_batch=8, steps_per_dispatch=1
    )
    for after, infos in loop:
        assert infos.losses.mean() > 0  # what comes back can be used in the same program
        state = after
    batch = jax.vmap(waves.sample)(jax.random.split(jax.random.key(key), 8))
    state, _ = learner.step(state, batch)
    rj.checkpoint.save(folder, state)
    state, _ = learner.step(rj.checkpoint.restore(folder, state), batch)
    score = lambda params, task: loss(params, task.query)
    result = rj.evaluate(
        loss, score, optax.sgd(0.02), state.params, waves, jax.random.key(4), num_tasks=9, mesh=mesh
    )
    given = rj.evaluate(loss, score, optax.sgd(0.02), state.params, batch, mesh=mesh)
    return jax.device_get((state, result.mean, given.scores))


@pytest.fixture(scope="module")
def whole_programs_results(tmp_path_factory):
    return whole_program(None, tmp_path_factory.mktemp("one") / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["no mesh", "the mesh"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_program_runs_with_a_mesh_set_around_it(kind, own, whole_programs_results, tmp_path):
    mesh = around(kind)
    with jax.set_mesh(mesh):
        found = whole_program(mesh if own else None, tmp_path / "checkpoints")
    chex.assert_trees_all_close(found, whole_programs_results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mesh", [None, "tasks"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.usefixtures("x64")
def test_arrays_that_are_divided_over_a_mesh_are_a_meta_batch_too(kind, mesh, is_set):
    """Those of an explicit mesh carry its axes in their types."""
    made = around(kind)
    batch = tasks(8)
    divided = jax.device_put(batch, NamedSharding(made, PartitionSpec("tasks")))
    expected = jax.device_get(two_steps(batch, mesh and mesh_of(8)))
    with jax.set_mesh(made) if is_set else contextlib.nullcontext():
        found = two_steps(divided, mesh and made)
    chex.assert_trees_all_close(jax.device_get(found), expected, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.usefixtures("x64")
def test_a_state_may_come_from_outside_of_the_mesh_that_is_set(kind):
    batch, mesh = tasks(8), mesh_of(8)
    inner = outside_strict(optax.adam(0.05, b1=0.5, b2=0.9))
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(0.5), mesh=mesh, donate=False)
    state = learner.init(params())
    expected, _ = learner.step(state, batch)
    with jax.set_mesh(around(kind)):
        found, _ = learner.step(state, batch)
        inside_jit, _ = jax.jit(lambda state: learner.step(state, batch))(state)
        plain, _ = rj.meta_step(
            rj.reptile(loss_fn, inner), optax.sgd(0.5), learner.init(params()), batch, mesh=mesh
        )
        assert float(optax.tree.norm(found.params)) > 0
    after, _ = learner.step(found, batch)
    chex.assert_trees_all_close(after, learner.step(expected, batch)[0], rtol=1e-11)
    for other in (found, inside_jit, plain):
        chex.assert_trees_all_close(other, expected, rtol=1e-11)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_another_mesh_around_the_program_is_refused_in_words(kind):
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0), mesh=mesh_of(8))
    start = jax.tree.map(np.float32, params())
    state = learner.init(start)
    message = "has set a mesh of {'data': 8}, but the tasks are divided over one of {'tasks': 8}"
    with jax.set_mesh(around(kind, "data")):
        for use in (
            lambda: learner.init(start),
            lambda: learner.step(state, jax.tree.map(np.float32, tasks(8))),
            lambda: rj.train(learner, state, sinusoids(), KEY, until=1, meta_batch=8),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                use()
    alone = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    with jax.set_mesh(around(kind, "data")):  # without a mesh of its own, any will do
        alone.step(alone.init(start), jax.tree.map(np.float32, tasks(8)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_state_is_donated_where_a_mesh_is_set(kind):
    outer = outside_strict(optax.adam(0.1))
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), outer, mesh=mesh_of(8))
    batch = jax.tree.map(np.float32, tasks(8))
    with jax.set_mesh(around(kind)):
        state = learner.init(jax.tree.map(np.float32, params()))
        program = learner.step.lower(state, batch).compile()
        donated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= donated
