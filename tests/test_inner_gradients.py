"""The paper's Taylor analysis (section 5.1), exactly: every order of the mini-batches averaged."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from tests.conftest import outside_strict

POOL, SIZE = 5, 4
RANDOM = np.random.default_rng(0)
CUBIC = tuple(RANDOM.normal(size=(POOL, *([SIZE] * order))) for order in (3, 2, 1))
START = RANDOM.normal(size=SIZE)


def loss_fn(phi, batch):
    """A cubic: its Hessian varies, so that no term of the expansion is hidden."""
    cubic, square, linear = batch
    return (
        jnp.einsum("ijk,i,j,k", cubic, phi, phi, phi) / 6 + phi @ (square @ phi) / 2 + linear @ phi
    )


def orders(k, replace):
    """All ways to draw k mini-batches from the pool in order: `[ways, k]`."""
    draw = (
        itertools.product(range(POOL), repeat=k)
        if replace
        else itertools.permutations(range(POOL), k)
    )
    return np.array(list(draw))


def expectation(name, k, replace):
    """α -> E[the direction] over all orders, at START."""
    batches = tuple(leaf[orders(k, replace)] for leaf in CUBIC)

    def direction(alpha, batches):
        inner = optax.sgd(alpha)
        if name in ("fomaml", "maml"):
            support, query = (jax.tree.map(lambda x, s=s: x[s], batches) for s in (slice(-1), -1))
            sibling = getattr(rj, name)(loss_fn, inner)
            return sibling.compute(jnp.asarray(START), None, rj.Task(support, query)).gradient
        weights = {"reptile": [1.0] * k, "last": [0.0] * (k - 1) + [1.0]}.get(
            name, [-1.0] + [0.0] * (k - 2) + [2.0]
        )
        sibling = rj.weighted_gradients(loss_fn, inner, weights)
        return sibling.compute(jnp.asarray(START), None, rj.Task(batches)).gradient

    return lambda alpha: jnp.mean(jax.vmap(direction, (None, 0))(alpha, batches), axis=0)


@functools.cache
def terms(replace):
    """AvgGrad and AvgGradInner, by the convention of the draw."""
    gradients = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))(START, CUBIC)
    hessians = jax.jit(jax.vmap(jax.hessian(loss_fn), (None, 0)))(START, CUBIC)
    gradients, hessians = np.asarray(gradients), np.asarray(hessians)
    pairs = [(i, j) for i in range(POOL) for j in range(POOL) if replace or i != j]
    inner = np.mean([hessians[i] @ gradients[j] for i, j in pairs], axis=0)
    return np.mean(gradients, axis=0), inner


COEFFICIENTS = {
    "maml": lambda k: (1, -2 * (k - 1)),
    "fomaml": lambda k: (1, -(k - 1)),
    "last": lambda k: (1, -(k - 1)),
    "reptile": lambda k: (k, -k * (k - 1) / 2),
    "2 g_k - g_1": lambda k: (1, -2 * (k - 1)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_the_leading_terms_are_the_papers(name, k, replace):
    expected = expectation(name, k, replace)
    and_slope = jax.jit(lambda alpha: jax.jvp(expected, (alpha,), (1.0,)))
    (value, slope), *others = (map(np.asarray, and_slope(alpha)) for alpha in (0.0, 2e-4, 1e-4))
    (to_grad, to_inner), (avg_grad, avg_grad_inner) = COEFFICIENTS[name](k), terms(replace)
    np.testing.assert_allclose(value, to_grad * avg_grad, atol=1e-13)
    np.testing.assert_allclose(slope, to_inner * avg_grad_inner, atol=1e-12)
    residual = [
        np.linalg.norm(other - value - alpha * slope)
        for alpha, (other, _) in zip((2e-4, 1e-4), others, strict=True)
    ]
    np.testing.assert_allclose(residual[0] / residual[1], 4, rtol=0.02)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [2, 3, 4])
def test_2gk_minus_g1_agrees_with_maml_to_second_order(k):
    maml, other = (expectation(name, k, False) for name in ("maml", "2 g_k - g_1"))
    difference = jax.jit(lambda alpha: maml(alpha) - other(alpha))
    gap = [np.linalg.norm(difference(alpha)) for alpha in (2e-4, 1e-4)]
    assert gap[1] > 1e-9
    np.testing.assert_allclose(gap[0] / gap[1], 4, rtol=0.02)


def task(steps, query=False):
    take = lambda s: tuple(jnp.asarray(leaf)[s] for leaf in CUBIC)
    return rj.Task(take(slice(steps)), take(-1) if query else None)


@pytest.mark.usefixtures("x64")
def test_all_ones_is_reptile_over_the_rate_and_the_last_is_fomaml():
    inner, theta = optax.sgd(0.01), jnp.asarray(START)
    summed = rj.weighted_gradients(loss_fn, inner, [1, 1, 1, 1]).compute(theta, None, task(4))
    reptile = rj.reptile(loss_fn, inner).compute(theta, None, task(4))
    chex.assert_trees_all_close(0.01 * summed.gradient, reptile.gradient, rtol=1e-11)
    chex.assert_trees_all_close(summed.losses, reptile.losses)
    last = rj.weighted_gradients(loss_fn, inner, [0, 0, 0, 0, 1]).compute(theta, None, task(5))
    fomaml = rj.fomaml(loss_fn, inner).compute(theta, None, task(4, query=True))
    chex.assert_trees_all_close(last.gradient, fomaml.gradient, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", [optax.sgd, lambda rate: optax.rmsprop(rate)])
def test_foml_is_fomaml_for_sgd_alone(optimizer):
    theta, rate = jnp.asarray(START), 0.01
    one, other = rj.foml(loss_fn, optimizer(rate)), rj.fomaml(loss_fn, optimizer(rate))
    separate = one.compute(theta, None, task(4, query=True))
    shared = one.compute(theta, None, task(5))
    chex.assert_trees_all_close(separate.gradient, shared.gradient, rtol=1e-12)
    assert separate.losses.shape == (5,)
    expected = rate * other.compute(theta, None, task(4, query=True)).gradient
    same = np.allclose(separate.gradient, expected, rtol=1e-10)
    assert same == (optimizer is optax.sgd)


@pytest.mark.usefixtures("x64")
def test_a_meta_learner_is_made_of_them_as_of_any_other():
    tasks = jax.tree.map(lambda leaf: leaf[None], task(4))
    for sibling in (
        rj.weighted_gradients(loss_fn, optax.sgd(0.01), [-1, 0, 0, 2]),
        rj.foml(loss_fn, optax.sgd(0.01)),
    ):
        learner = rj.meta_learner(sibling, optax.sgd(0.01), inner_opt_state="average")
        state, info = learner.step(learner.init(jnp.asarray(START)), tasks)
        assert info.losses.shape == (1, 4)
        assert not np.allclose(state.params, START)


def test_bad_weights_and_single_batches_are_named():
    compute = lambda sibling, steps: sibling.compute(jnp.zeros(SIZE), None, task(steps))
    with pytest.raises(ValueError, match="2 weights for 3 inner steps: give one for each"):
        compute(rj.weighted_gradients(loss_fn, optax.sgd(0.1), [1, 2]), 3)
    with pytest.raises(ValueError, match="weights are a sequence of finite numbers"):
        rj.weighted_gradients(loss_fn, optax.sgd(0.1), [1, np.nan])
    with pytest.raises(ValueError, match="foml needs two mini-batches, or a query set"):
        compute(rj.foml(loss_fn, optax.sgd(0.1)), 1)
    vector = lambda params, batch: params
    with pytest.raises(ValueError, match="loss_fn returns a scalar, or"):
        compute(rj.weighted_gradients(vector, optax.sgd(0.1), [1, 2]), 2)


# An independent sum of the inner gradients, in NumPy, of mini-batches of which some are empty.

WEIGHTS = [-1.0, 0.3, 0.7, 0.0, 2.0]
NO_STEP = {"none": [(), (), ()], "front": [(0,), (0, 1), ()], "middle": [(2,), (1, 3), (0, 2, 4)]}


def masked_tasks(no_step):
    """Three tasks of five mini-batches of four examples, with NaN for padding."""
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(3, 5, 4, 2)), rng.normal(size=(3, 5, 4))
    mask = rng.uniform(size=(3, 5, 4)) < 0.7
    mask[..., 0] = True
    for index, steps in enumerate(no_step):
        mask[index, list(steps)] = False
    inputs[~mask] = np.nan
    return rj.tasks.Masked(rj.Batch(inputs, targets), mask)


def numpy_weighted(theta, support, meta_steps, policy, adam, rate=0.05, meta_rate=0.1):
    """θ and the losses after meta steps that follow Σ w_i g_i, with Adam's moments or none."""
    state = np.zeros(2), np.zeros(2), 0
    for _ in range(meta_steps):
        start, totals, ends, losses = state, [], [], np.zeros((3, 5))
        for index, task in enumerate(zip(*support.examples, support.mask, strict=True)):
            if policy != "carry":
                state = (np.zeros(2), np.zeros(2), 0) if policy == "reset" else start
            phi, total = theta, 0
            for step, (x, y, real) in enumerate(zip(*task, strict=True)):
                if not real.any():
                    continue
                residual = x[real] @ phi - y[real]
                losses[index, step] = np.mean(residual**2)
                gradient = 2 * residual @ x[real] / real.sum()
                total = total + WEIGHTS[step] * gradient
                if adam:
                    first, second, count = state
                    first = 0.9 * first + 0.1 * gradient
                    second, count = 0.999 * second + 0.001 * gradient**2, count + 1
                    state = first, second, count
                    scale = np.sqrt(second / (1 - 0.999**count)) + 1e-8
                    gradient = first / (1 - 0.9**count) / scale
                phi = phi - rate * gradient
            totals.append(total)
            ends.append(state)
        if policy == "average":
            first, second, counts = zip(*ends, strict=True)
            moved = np.round(np.mean([count - start[2] for count in counts]))
            state = np.mean(first, 0), np.mean(second, 0), start[2] + int(moved)
        theta = theta - meta_rate * np.mean(totals, 0)
    return theta, losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("policy", "at_once"),
    [("reset", 1), ("reset", 3), ("average", 1), ("average", 3), ("carry", 1)],
)
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("no_step", NO_STEP)
def test_weights_are_of_mini_batches_whichever_of_them_are_empty(no_step, adam, policy, at_once):
    support = masked_tasks(NO_STEP[no_step])
    squares = rj.tasks.masked_mean(
        lambda params, batch: (batch.inputs @ params - batch.targets) ** 2
    )
    inner = outside_strict(optax.adam(0.05)) if adam else optax.sgd(0.05)
    learner = rj.meta_learner(
        rj.weighted_gradients(squares, inner, WEIGHTS),
        optax.sgd(0.1),
        inner_opt_state=policy,
        tasks_at_once=at_once,
    )
    theta = np.array([1.0, -0.5])
    state = learner.init(theta)
    for _ in range(3):
        state, info = learner.step(state, rj.Task(support))
    expected, losses = numpy_weighted(theta, support, 3, policy, adam)
    assert info.finite.all()
    np.testing.assert_allclose(state.params, expected, rtol=1e-12)
    np.testing.assert_allclose(info.losses, losses, rtol=1e-12)
