"""The algorithm against closed forms, an independent NumPy version, and its identities."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import reptile_jax as rj
from tests.conftest import outside_strict

SIBLINGS = {"reptile": rj.reptile, "fomaml": rj.fomaml, "maml": rj.maml}
RATE, STEPS = 0.1, 3

# Asymmetric on purpose: a reversed sign, a transposed matrix or a lost factor cannot hide.
SUPPORT_CURVATURE = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 3.0]])
QUERY_CURVATURE = np.array([[1.0, -0.4, 0.1], [-0.4, 2.5, 0.6], [0.1, 0.6, 0.7]])


def quadratic(params, batch):
    """½ (θ − c)ᵀ A (θ − c)."""
    curvature, center = batch
    offset = params["theta"] - center
    return 0.5 * offset @ (curvature @ offset)


def quadratic_tasks(centers):
    """Tasks with the same minimum in every mini-batch, and another in the query set."""
    num_tasks = len(centers)
    support = (
        jnp.tile(SUPPORT_CURVATURE, (num_tasks, STEPS, 1, 1)),
        jnp.tile(jnp.asarray(centers)[:, None], (1, STEPS, 1)),
    )
    query = jnp.tile(QUERY_CURVATURE, (num_tasks, 1, 1)), jnp.asarray(centers) + 0.5
    return rj.Task(support, query)


def closed_form(name, theta, center):
    shrink = np.linalg.matrix_power(np.eye(3) - RATE * SUPPORT_CURVATURE, STEPS)
    adapted = center + shrink @ (theta - center)
    query_gradient = QUERY_CURVATURE @ (adapted - center - 0.5)
    return {
        "reptile": theta - adapted,
        "fomaml": query_gradient,
        "maml": shrink.T @ query_gradient,
    }[name]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize("name", SIBLINGS)
def test_one_meta_step_is_the_closed_form(name, jitted):
    theta, meta_rate = np.array([1.0, -2.0, 0.5]), 0.7
    centers = np.array([[0.3, 0.1, -1.0], [2.0, -1.0, 0.4]])
    learner = rj.meta_learner(
        SIBLINGS[name](quadratic, optax.sgd(RATE)), optax.sgd(meta_rate), donate=False
    )
    state = learner.init({"theta": theta})
    with jax.disable_jit(not jitted):
        after, info = learner.step(state, quadratic_tasks(centers))
    gradient = np.mean([closed_form(name, theta, center) for center in centers], axis=0)
    np.testing.assert_allclose(
        after.params["theta"], theta - meta_rate * gradient, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(gradient), rtol=1e-12)
    offset = theta - centers[0]
    np.testing.assert_allclose(info.losses[0, 0], 0.5 * offset @ SUPPORT_CURVATURE @ offset)


@pytest.mark.usefixtures("x64")
def test_maml_is_the_derivative_of_the_query_loss_by_finite_differences():
    params, tasks = network_params(), network_tasks(num_tasks=1)
    task = jax.tree.map(lambda leaf: leaf[0], tasks)
    inner = optax.sgd(0.1)

    def query_loss(params):
        return network_loss(
            rj.inner_loop(network_loss, inner, params, task.support).params, task.query
        )

    gradient = rj.maml(network_loss, inner).compute(params, None, task).gradient
    direction = jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), params)
    move = lambda t: jax.tree.map(lambda p, d: p + t * d, params, direction)
    finite_difference = (query_loss(move(1e-5)) - query_loss(move(-1e-5))) / 2e-5
    np.testing.assert_allclose(optax.tree.vdot(gradient, direction), finite_difference, rtol=1e-7)


# An independent Reptile, in NumPy: two layers, gradients by hand.


def numpy_gradients(params, inputs, targets):
    hidden = np.tanh(inputs @ params["w1"] + params["b1"])
    error = 2 * (hidden @ params["w2"] + params["b2"] - targets) / targets.size
    back = (error @ params["w2"].T) * (1 - hidden**2)
    return {"w1": inputs.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}


def numpy_reptile(params, meta_steps, meta_rate, rate, adam):
    for tasks in meta_steps:
        deltas = []
        for inputs, targets in tasks:
            adapted = {name: value.copy() for name, value in params.items()}
            moment = {name: np.zeros_like(value) for name, value in params.items()}
            for step, (x, y) in enumerate(zip(inputs, targets, strict=True), 1):
                for name, gradient in numpy_gradients(adapted, x, y).items():
                    if adam:
                        moment[name] = 0.999 * moment[name] + 0.001 * gradient**2
                        gradient = gradient / (np.sqrt(moment[name] / (1 - 0.999**step)) + 1e-8)
                    adapted[name] = adapted[name] - rate * gradient
            deltas.append({name: adapted[name] - params[name] for name in params})
        params = {
            name: params[name] + meta_rate * np.mean([delta[name] for delta in deltas], axis=0)
            for name in params
        }
    return params


def network_loss(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w1"] + params["b1"][None])
    return jnp.mean((hidden @ params["w2"] + params["b2"][None] - batch.targets) ** 2)


def network_params():
    rng = np.random.default_rng(0)
    shapes = {"w1": (2, 7), "b1": (7,), "w2": (7, 1), "b2": (1,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def network_tasks(num_tasks, steps=4, seed=1):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_tasks, steps + 1, 6, 2))
    targets = np.sin(inputs[..., :1] * rng.normal(size=(num_tasks, 1, 1, 1)))
    batches = rj.Batch(jnp.asarray(inputs), jnp.asarray(targets))
    return rj.Task(
        jax.tree.map(lambda leaf: leaf[:, 1:], batches),
        jax.tree.map(lambda leaf: leaf[:, 0], batches),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_tasks", [1, 3])
@pytest.mark.parametrize("adam", [False, True])
def test_five_meta_steps_agree_with_numpy(num_tasks, adam):
    meta_steps = [network_tasks(num_tasks, seed=seed) for seed in range(5)]
    inner = outside_strict(optax.adam(0.05, b1=0.0, b2=0.999)) if adam else optax.sgd(0.05)
    learner = rj.meta_learner(rj.reptile(network_loss, inner), optax.sgd(0.3))
    state = learner.init(network_params())
    for tasks in meta_steps:
        state, _ = learner.step(state, tasks)
    in_numpy = [
        [(np.asarray(x), np.asarray(y)) for x, y in zip(*tasks.support, strict=True)]
        for tasks in meta_steps
    ]
    expected = numpy_reptile(network_params(), in_numpy, 0.3, 0.05, adam)
    chex.assert_trees_all_close(state.params, expected, rtol=0, atol=1e-10)


# Identities.


@functools.cache
def learner_for(sibling):
    return rj.meta_learner(sibling(network_loss, optax.sgd(0.05)), optax.sgd(0.8), donate=False)


def one_step(params, tasks, meta_optimizer, inner=None, sibling=rj.reptile, **options):
    inner = optax.sgd(0.05) if inner is None else inner
    learner = rj.meta_learner(sibling(network_loss, inner), meta_optimizer, **options)
    return learner.step(learner.init(params), tasks)[0].params


@pytest.mark.usefixtures("x64")
def test_one_inner_step_is_joint_training():
    tasks = network_tasks(4, steps=1)
    joint = lambda params: jnp.mean(
        jax.vmap(network_loss, (None, 0))(params, jax.tree.map(lambda x: x[:, 0], tasks.support))
    )
    params = jax.tree.map(jnp.asarray, network_params())
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(joint)(params))
    chex.assert_trees_all_close(one_step(params, tasks, optax.sgd(1.0)), expected, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_a_full_meta_step_on_one_task_lands_on_the_adapted_parameters():
    tasks, params = network_tasks(1), network_params()
    support = jax.tree.map(lambda leaf: leaf[0], tasks.support)
    adapted = rj.inner_loop(network_loss, optax.sgd(0.05), params, support)
    chex.assert_trees_all_close(one_step(params, tasks, optax.sgd(1.0)), adapted.params, atol=1e-15)
    assert adapted.losses.shape == (4,)
    assert adapted.losses[-1] < adapted.losses[0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("meta_rate", "rate"), [(0.0, 0.05), (1.0, 0.0)])
def test_a_zero_rate_changes_nothing(meta_rate, rate):
    params = one_step(network_params(), network_tasks(2), optax.sgd(meta_rate), optax.sgd(rate))
    chex.assert_trees_all_equal(params, jax.tree.map(jnp.asarray, network_params()))


@pytest.mark.usefixtures("x64")
@settings(deadline=None, max_examples=20, derandomize=True)
@given(order=st.permutations(range(4)))
def test_the_order_of_tasks_does_not_matter(order):
    learner = learner_for(rj.reptile)
    tasks, state = network_tasks(4), learner.init(network_params())
    permuted = jax.tree.map(lambda leaf: leaf[np.array(order)], tasks)
    after, in_other_order = (learner.step(state, tasks)[0] for tasks in (tasks, permuted))
    chex.assert_trees_all_close(after, in_other_order, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SIBLINGS)
def test_a_batched_step_is_the_mean_of_serial_deltas(name):
    tasks, params = network_tasks(3), jax.tree.map(jnp.asarray, network_params())
    learner = learner_for(SIBLINGS[name])
    step = lambda tasks: learner.step(learner.init(params), tasks)[0].params
    serial = [step(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], tasks)) for i in range(3)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *serial)
    chex.assert_trees_all_close(step(tasks), mean, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_fomaml_tends_to_maml_as_the_inner_rate_vanishes():
    params, tasks = network_params(), network_tasks(2)
    gap = []
    for rate in (1e-3, 1e-4):
        first, second = (
            one_step(params, tasks, optax.sgd(1.0), optax.sgd(rate), sibling)
            for sibling in (rj.fomaml, rj.maml)
        )
        gap.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, first, second))))
    assert 8 < gap[0] / gap[1] < 12
    assert gap[1] > 1e-6


# The contract.


@pytest.mark.parametrize(
    ("name", "inner_opt_state"),
    [(name, "average") for name in SIBLINGS] + [("reptile", "reset"), ("reptile", "carry")],
)
def test_the_state_keeps_its_types_and_nothing_recompiles(name, inner_opt_state):
    traces = 0

    def loss_fn(params, batch):
        nonlocal traces
        traces += 1
        return network_loss(params, batch)

    to_f32 = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    tasks = to_f32(network_tasks(3))
    inner = outside_strict(optax.adam(0.01))
    outer = outside_strict(optax.adam(optax.linear_schedule(0.1, 0.0, 10)))
    learner = rj.meta_learner(
        SIBLINGS[name](loss_fn, inner), outer, inner_opt_state=inner_opt_state
    )
    state = learner.init(to_f32(network_params()))
    types = jax.tree.map(lambda leaf: leaf.aval, state)
    for _ in range(3):
        state, info = learner.step(state, tasks)
        assert jax.tree.map(lambda leaf: leaf.aval, state) == types
    assert learner.step.__wrapped__._cache_size() == 1
    assert traces == (1 if name == "reptile" else 2)
    assert info.losses.shape == (3, 4)
    state, infos = jax.lax.scan(lambda state, _: learner.step(state, tasks), state, length=2)
    assert int(state.step) == 5
    assert infos.losses.shape == (2, 3, 4)


def test_donation_does_not_eat_the_parameters_given():
    params = {"theta": jnp.ones(3)}
    learner = rj.meta_learner(rj.reptile(quadratic, optax.sgd(0.1)), optax.sgd(1.0))
    state = learner.init(params)
    tasks = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), quadratic_tasks(np.zeros((1, 3))))
    after, _ = learner.step(state, tasks)
    np.testing.assert_array_equal(params["theta"], np.ones(3))
    assert state.params["theta"].is_deleted()
    assert not np.array_equal(after.params["theta"], params["theta"])


@pytest.mark.parametrize("devices", [None, 1, 2])
@pytest.mark.parametrize("kept_by", [jnp.asarray, np.asarray])
def test_a_meta_optimiser_may_keep_the_parameters_in_its_state(kept_by, devices):
    """Donated, a buffer with two owners would be an error, or change under one of them."""
    given = {"theta": kept_by(np.ones(3, np.float32))}
    outer = outside_strict(optax.contrib.dog(1.0))
    inner = optax.GradientTransformation(  # which keeps them, too
        lambda params: params,
        lambda grads, state, params: (jax.tree.map(jnp.negative, grads), state),
    )
    mesh = rj.task_mesh(jax.devices()[:devices]) if devices else None
    learner = rj.meta_learner(
        rj.reptile(quadratic, inner), outer, inner_opt_state="average", mesh=mesh
    )
    state = learner.init(given)
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    owners = [shard.data.unsafe_buffer_pointer() for shard in shards]
    assert len(set(owners)) == len(owners)
    assert not set(owners) & {jnp.asarray(given["theta"]).unsafe_buffer_pointer()}
    tasks = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), quadratic_tasks(np.zeros((2, 3))))
    state, _ = learner.step(state, tasks)
    assert int(state.step) == 1
    np.testing.assert_array_equal(given["theta"], np.ones(3))


def test_a_meta_step_that_resets_leaves_the_inner_state_in_the_state_alone():
    """It is neither a start nor changed: the meta step is that of a state without one."""
    meta_gradient, outer = rj.reptile(network_loss, optax.sgd(0.05, momentum=0.9)), optax.sgd(0.5)
    to_f32 = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    params, tasks = to_f32(network_params()), to_f32(network_tasks(2))
    learner = rj.meta_learner(meta_gradient, outer, inner_opt_state="average", donate=False)
    state, _ = learner.step(learner.init(params), tasks)
    assert optax.tree.norm(state.inner_opt_state) > 0.1
    step = jax.jit(functools.partial(rj.meta_step, meta_gradient, outer))
    after, info = step(state, tasks)
    chex.assert_trees_all_equal(after.inner_opt_state, state.inner_opt_state)
    without, same = step(state._replace(inner_opt_state=None), tasks)
    chex.assert_trees_all_equal((after._replace(inner_opt_state=None), info), (without, same))
    from_it, _ = learner.step(state, tasks)
    assert not np.allclose(from_it.params["w1"], after.params["w1"], rtol=1e-4)


def test_a_loss_may_draw_from_a_key_in_its_batch():
    def noisy(params, batch):
        noise = jax.random.normal(batch["key"], params["theta"].shape)
        return jnp.sum((params["theta"] + noise) ** 2)

    keys = jax.random.split(jax.random.key(0), (2, 3))
    learner = rj.meta_learner(rj.reptile(noisy, optax.sgd(0.1)), optax.sgd(1.0))
    _, info = learner.step(learner.init({"theta": jnp.ones(2)}), rj.Task({"key": keys}))
    assert len(np.unique(info.losses)) == 6


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


@pytest.mark.parametrize("library", ["linen", "nnx", "dict"])
def test_any_pytree_of_parameters_learns(library):
    if library == "linen":
        model = LinenNetwork()
        params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
        predict = model.apply
    elif library == "nnx":
        graph, params = nnx.split(NnxNetwork(nnx.Rngs(0)))
        predict = lambda params, x: nnx.merge(graph, params)(x)
    else:
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network_params())
        predict = lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]
    loss_fn = lambda params, batch: jnp.mean((predict(params, batch.inputs) - batch.targets) ** 2)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.05)), optax.sgd(0.5))
    state = learner.init(params)
    tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network_tasks(4))
    losses = []
    for _ in range(20):
        state, info = learner.step(state, tasks)
        losses.append(float(jnp.mean(info.losses)))
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert losses[-1] < 0.8 * losses[0]


# Bad input: a clear error, before anything is compiled.


def learner_and_state(loss_fn=quadratic, sibling=rj.reptile, **options):
    learner = rj.meta_learner(sibling(loss_fn, optax.sgd(0.1)), optax.sgd(1.0), **options)
    return learner, learner.init({"theta": jnp.ones(3)})


def support(tasks=2, steps=3, centers=None):
    return (jnp.ones((tasks, steps, 3, 3)), jnp.ones((centers or tasks, steps, 3)))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (rj.Task(support(tasks=0)), r"the meta-batch has a leading axis \[tasks\] of 0"),
        (rj.Task(support(steps=0)), r"each task's support set has a leading axis \[steps\] of 0"),
        (
            rj.Task(support(tasks=2, centers=3)),
            r"meta-batch disagree on their leading axis \[tasks\]: \.support\[0\]: 2, .*\[1\]: 3",
        ),
        (rj.Task(support(), jnp.ones(())), r"\.query: a scalar"),
        (
            rj.Task((jnp.ones((2, 3, 3, 3)), jnp.ones((2, 4, 3)))),
            r"each task's support set disagree on their leading axis \[steps\]: \[0\]: 3, \[1\]: 4",
        ),
        (rj.Task(None), "the meta-batch has no arrays"),
    ],
)
def test_bad_tasks_are_named(tasks, message):
    learner, state = learner_and_state()
    with pytest.raises(ValueError, match=message):
        learner.step(state, tasks)


def test_parameters_that_cannot_be_learned_are_named():
    learner, _ = learner_and_state()
    with pytest.raises(TypeError, match=r"params\['count'\] is int32: keep what is not"):
        learner.init({"theta": jnp.ones(3), "count": jnp.arange(3)})
    with pytest.raises(ValueError, match="there is nothing to learn"):
        learner.init({})
    with pytest.raises(TypeError, match=r"params\['theta'\] is int32"):
        rj.inner_loop(quadratic, optax.sgd(0.1), {"theta": jnp.arange(3)}, support()[0])


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_loss_that_is_not_a_scalar_is_named(name):
    learner, state = learner_and_state(lambda params, batch: params["theta"], SIBLINGS[name])
    with pytest.raises(
        ValueError, match=r"scalar, aux\), but gave the shapes \(3,\): take the mean over the batch"
    ):
        learner.step(state, rj.Task(support(), jax.tree.map(lambda x: x[:, 0], support())))


def test_tasks_of_another_type_are_named():
    learner, state = learner_and_state()
    with pytest.raises(TypeError, match=r"tasks are a Task\(support, query\), got tuple"):
        learner.step(state, support())


@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_a_missing_query_set_is_named(name):
    learner, state = learner_and_state(sibling=SIBLINGS[name])
    with pytest.raises(ValueError, match="fomaml and maml need a query set"):
        learner.step(state, rj.Task(support()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_opt_state": "kept"}, r"inner_opt_state is one of \('reset', 'average', 'carry'\)"),
        ({"tasks_at_once": 0}, "tasks_at_once is at least 1, got 0"),
        ({"inner_opt_state": "carry", "tasks_at_once": 4}, "runs one task after another"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learner_and_state(**options)
