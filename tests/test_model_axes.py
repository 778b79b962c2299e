"""On a mesh with axes of the model's: the meta step of one device, and nothing is gathered."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import reptile_jax as rj
from reptile_jax import checkpoint
from tests.conftest import outside_strict

SPECS = {"into": P(None, "model"), "bias": P("model"), "out": P("model", None), "scale": P()}


def mesh_of(tasks, model):
    return Mesh(np.array(jax.devices()[: tasks * model]).reshape(tasks, model), ("tasks", "model"))


def params(mesh=None, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"into": (3, 16), "bias": (16,), "out": (16, 2), "scale": (2,)}
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    if mesh is None:
        return arrays
    place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
    return jax.tree.map(place, arrays, SPECS)


def f32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["into"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] * params["scale"][None] - batch.targets) ** 2)


def tasks(number):
    """Tasks with weights, of which the second diverges."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(number, 3, 4, 3))
    targets = np.sin(inputs[..., :2])
    targets[1:2, 2] = np.inf
    query = rj.Batch(inputs[:, 0], np.cos(inputs[:, 0, :, :2]))
    return rj.Task(rj.Batch(inputs, targets), query, weight=rng.uniform(0.5, 2, number))


def learner_on(mesh, sibling=rj.reptile, **options):
    inner = outside_strict(optax.adam(0.05, b1=0.5, b2=0.9))
    outer = optax.sgd(0.5, momentum=0.9)
    options = {"inner_opt_state": "average", **options}
    return rj.meta_learner(sibling(loss_fn, inner), outer, mesh=mesh, **options)


def is_divided_as_before(state):
    """Parameters, momentum and second moments are where the parameters were."""
    for tree in (state.params, state.opt_state[0].trace, state.inner_opt_state[0].nu):
        for name, spec in SPECS.items():
            sharding, size = tree[name].sharding, tree[name].size
            assert sharding.is_equivalent_to(NamedSharding(sharding.mesh, spec), tree[name].ndim)
            parts = sharding.mesh.shape["model"] if "model" in jax.tree.leaves([*spec]) else 1
            assert {part.data.size for part in tree[name].addressable_shards} == {size // parts}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("sibling", "shape"),
    [
        (rj.reptile, (2, 2)),
        pytest.param(rj.reptile, (2, 4), marks=pytest.mark.slow),
        (rj.reptile, (4, 2)),
        (rj.reptile, (1, 8)),
        (rj.maml, (2, 4)),
    ],
)
def test_the_meta_step_is_that_of_one_device(shape, sibling):
    mesh, batch = mesh_of(*shape), tasks(5)
    results = []
    for where in (None, mesh):
        learner = learner_on(where, sibling)
        state, first = learner.step(learner.init(params(where)), batch)
        state, second = learner.step(state, batch)
        results.append(jax.device_get((state, first, second)))
        if where is not None:
            is_divided_as_before(state)
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_tasks_side_by_side():
    batch, results = tasks(6), []
    for mesh in (None, mesh_of(2, 2)):
        learner = learner_on(mesh, tasks_at_once=2, inner_opt_state="average")
        state, info = learner.step(learner.init(params(mesh)), batch)
        results.append(jax.device_get((state, info)))
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-11)


class Drawn:
    """p(τ), drawn on the device."""

    def sample(self, key):
        inputs = jax.random.normal(key, (3, 4, 3))
        batch = rj.Batch(inputs, jnp.sin(inputs[..., :2]))
        return rj.Task(batch, jax.tree.map(lambda leaf: leaf[0], batch))


jax.tree_util.register_static(Drawn)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_training_and_evaluation_keep_the_model_divided():
    results = []
    for mesh in (None, mesh_of(2, 4)):
        learner = learner_on(mesh)
        state = learner.init(params(mesh))
        loop = rj.train(
            learner, state, Drawn(), jax.random.key(0), until=4, meta_batch=3, steps_per_dispatch=2
        )
        *_, (state, infos) = loop
        if mesh is not None:
            is_divided_as_before(state)
        scored = rj.evaluate(
            loss_fn,
            lambda params, task: loss_fn(params, task.query),
            optax.sgd(0.1),
            state.params,
            Drawn(),
            jax.random.key(1),
            num_tasks=5,
            mesh=mesh,
        )
        results.append((jax.device_get((state, infos)), scored))
    chex.assert_trees_all_close(results[1], results[0], rtol=1e-9)


def collectives(text):
    """Of a compiled program: (kind, groups of devices, whether it is in a loop)."""
    found = re.findall(
        r" (all-[a-z]+|reduce-scatter|collective-[a-z]+)[a-z-]*\(.*?"
        r"(?:replica_groups|source_target_pairs)=(\S+?), .*?op_name=\"(.*?)\"",
        text,
    )
    return [(kind, groups, "/while/" in name) for kind, groups, name in found]


def test_the_inner_loop_speaks_only_along_the_model():
    mesh = mesh_of(2, 4)
    learner = learner_on(mesh)
    state, batch = learner.init(params(mesh, np.float32)), f32(tasks(4))
    program = learner.step.lower(state, batch).compile()
    found = collectives(program.as_text())
    over_model = {"{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]"}
    over_tasks = {"{{0,4},{1,5},{2,6},{3,7}}", "[4,2]<=[2,4]T(1,0)"}
    inside = [(kind, groups) for kind, groups, looped in found if looped]
    assert {kind for kind, _ in inside} == {"all-reduce"}
    assert {groups for _, groups in inside} <= over_model
    outside = [(kind, groups) for kind, groups, looped in found if not looped]
    assert sum(groups in over_tasks for _, groups in outside) == 1
    assert {kind for kind, _ in outside} == {"all-reduce"}  # nothing is gathered
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().argument_size_in_bytes < whole / 2 + 4 * 3 * 4 * 5 * 4


@pytest.mark.parametrize("after", [(4, 2), (1, 8), None], ids=str)
def test_a_checkpoint_comes_back_on_another_mesh(tmp_path, after):
    mesh, other = mesh_of(2, 4), after and mesh_of(*after)
    learner, there = learner_on(mesh), learner_on(other)
    state, _ = learner.step(learner.init(params(mesh, np.float32)), f32(tasks(3)))
    checkpoint.save(tmp_path, state)
    restored = checkpoint.restore(tmp_path, like=there.init(params(other, np.float32)))
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))
    if other is not None:
        is_divided_as_before(restored)
    went_on = (there.step(restored, f32(tasks(3))), learner.step(state, f32(tasks(3))))
    chex.assert_trees_all_close(*map(jax.device_get, went_on), rtol=1e-3, atol=1e-5)


def test_shapes_have_places_too():
    mesh = mesh_of(2, 4)
    learner = learner_on(mesh)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        learner.init(params(mesh, np.float32)),
    )
    placed = rj.replicate(like, mesh)
    assert placed.params["into"].sharding.spec == P(None, "model")
    assert placed.step.sharding.spec == P()


def test_explicit_axes_of_a_model_are_refused():
    mesh = jax.make_mesh((2, 4), ("tasks", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="divides a model are automatic here"):
        learner_on(mesh).init(params(dtype=np.float32))
    learner = learner_on(mesh)  # without the mesh around it, its axes become automatic
    assert learner.init(params(mesh, np.float32)).params["into"].sharding.spec == P(None, "model")
