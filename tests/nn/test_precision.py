"""Mixed precision: what computes in bfloat16, what stays in float32, and what that saves."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

import reptile_jax as rj
from tests.conftest import outside_strict

TASKS, STEPS, BATCH, SIZE = 4, 3, 8, 50
ULP = 2.0**-23  # of float32, at numbers from 1 to 2


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def products_of(function, *args):
    """The operands' dtypes of every matrix product and convolution."""
    found, closed = set(), [jax.make_jaxpr(function)(*args).jaxpr]
    while closed:
        for equation in closed.pop().eqns:
            closed += jaxprs_in_params(equation.params)
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found |= {str(operand.aval.dtype) for operand in equation.invars}
    return found


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("devices", [1, 2])
def test_the_mean_of_tiny_deltas_is_exact_to_the_rounding_of_theta(devices, at_once):
    """Deltas of some 1e-5 of θ, where bfloat16's spacing is 8e-3. The slopes do not depend on θ."""
    rng = np.random.default_rng(0)
    start = rng.uniform(1, 2, SIZE).astype(np.float32)
    inputs = rng.normal(size=(TASKS, STEPS, BATCH, SIZE)).astype(np.float32)
    loss_fn = rj.nn.in_bfloat16(lambda params, batch: jnp.mean(batch @ params))
    slopes = jax.vmap(jax.vmap(jax.grad(loss_fn), (None, 0)), (None, 0))(start, inputs)
    rate = float(1e-5 / np.abs(np.float64(slopes).sum(1)).mean())
    exact = np.float64(start) - rate * np.float64(slopes).sum(1).mean(0)

    learner = rj.meta_learner(
        rj.reptile(loss_fn, optax.sgd(rate)),
        optax.sgd(1.0),
        mesh=rj.task_mesh(jax.devices()[:devices]),
        tasks_at_once=at_once,
    )
    moved = lambda params: learner.step(learner.init(params), rj.Task(inputs))[0].params
    theta = moved(start)
    assert theta.dtype == np.float32
    # Each inner step rounds the adapted parameters by at most half a spacing, θ's own step as well.
    assert np.abs(np.float64(theta) - exact).max() <= (STEPS + 2) / 2 * ULP
    assert np.abs(exact - start).mean() > 20 * ULP
    # The gradient is of bfloat16's accuracy, and no better.
    error = np.linalg.norm(slopes - inputs.mean(2)) / np.linalg.norm(inputs.mean(2))
    assert 1e-4 < error < 1e-2
    half = jnp.asarray(start, jnp.bfloat16)  # such parameters do not move at all
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(moved(half), half)


def network():
    model = rj.nn.ConvNet(3, features=4, blocks=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(1)
    images = rng.normal(size=(TASKS, STEPS, BATCH, 8, 8, 1)).astype(np.float32)
    return model, params, rj.Batch(images, rng.integers(0, 3, (TASKS, STEPS, BATCH)))


def test_products_are_in_bfloat16_and_all_that_is_kept_is_float32():
    model, params, batches = network()
    loss_fn = rj.nn.cross_entropy(rj.nn.in_bfloat16(model.apply))
    inner, outer = (outside_strict(optax.adam(1e-2, b1=0.5)) for _ in range(2))
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), outer, inner_opt_state="average")
    state = learner.init(params)
    assert products_of(learner.step, state, rj.Task(batches)) == {"bfloat16"}
    after, info = learner.step(state, rj.Task(batches))
    assert dtypes(after) == {"float32", "int32"}
    assert dtypes(info.losses) == {"float32"}


def test_gradients_are_near_those_in_float32():
    model, params, batches = network()
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
    exact, around_network, around_loss = (
        jax.jit(jax.grad(loss_fn))(params, batch)
        for loss_fn in (
            rj.nn.cross_entropy(model.apply),
            rj.nn.cross_entropy(rj.nn.in_bfloat16(model.apply)),
            rj.nn.in_bfloat16(rj.nn.cross_entropy(model.apply)),
        )
    )
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for gradient in (around_network, around_loss):
        assert dtypes(gradient) == {"float32"}
        error = np.linalg.norm(flat(gradient) - flat(exact)) / np.linalg.norm(flat(exact))
        assert 1e-4 < error < 3e-2


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.Dense(4)(x)
        return flax.linen.Dense(1)(flax.linen.BatchNorm(False, momentum=0.9)(x))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.out = nnx.Linear(1, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(self.hidden(x)))


def linen():
    model = Linen()
    variables = model.init(jax.random.key(0), jnp.zeros((2, 1)))

    def loss_fn(params, stats, batch):
        given = {"params": params, "batch_stats": stats}
        outputs, after = model.apply(given, batch.inputs, mutable="batch_stats")
        return jnp.mean((outputs - batch.targets) ** 2), after["batch_stats"], outputs

    return loss_fn, variables["params"], variables["batch_stats"]


def in_nnx():
    graph, params, rest = nnx.split(Nnx(), nnx.Param, ...)

    def loss_fn(params, rest, batch):
        model = nnx.merge(graph, params, rest)
        outputs = model(batch.inputs)
        return jnp.mean((outputs - batch.targets) ** 2), nnx.state(model, nnx.BatchStat), outputs

    return loss_fn, params, rest


@pytest.mark.parametrize("made", [linen, in_nnx])
def test_running_averages_stay_in_float32(made):
    loss_fn, params, model_state = made()
    inputs = np.random.default_rng(0).normal(3, 1, (TASKS, STEPS, BATCH, 1)).astype(np.float32)
    tasks, results = rj.Task(rj.Batch(inputs, np.sin(inputs))), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for loss in (loss_fn, rj.nn.in_bfloat16(loss_fn)):
            learner = rj.meta_learner(rj.reptile(loss, optax.sgd(0.01)), optax.sgd(1.0))
            results.append(learner.step(learner.init(params, model_state), tasks))
    (single, _), (mixed, info) = results
    assert dtypes((mixed.params, mixed.model_state, info.aux)) == {"float32"}
    for leaf, exact in zip(
        *map(jax.tree.leaves, (mixed.model_state, single.model_state)), strict=True
    ):
        np.testing.assert_allclose(leaf, exact, rtol=0.02, atol=0.02)
        assert np.any(
            leaf != leaf.astype(jnp.bfloat16).astype(leaf.dtype)
        )  # not rounded on the way


def test_what_is_no_floating_point_number_passes_as_it_is():
    seen = []

    def loss_fn(params, counts, batch):
        seen.append((params, counts, batch))
        return jnp.sum(params), counts + 1

    given = {"x": jnp.ones(2), "label": jnp.arange(2), "key": jax.random.key(0), "how": 3}
    loss, state = rj.nn.in_bfloat16(loss_fn)(jnp.ones(2), jnp.float32(1 / 3), given)
    ((params, counts, batch),) = seen
    assert params.dtype == batch["x"].dtype == jnp.bfloat16
    assert counts == jnp.float32(1 / 3)
    assert (batch["label"].dtype, batch["key"], batch["how"]) == (np.int32, given["key"], 3)
    assert (loss.dtype, state.dtype) == (np.float32, np.float32)
