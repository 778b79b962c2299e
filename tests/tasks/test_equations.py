"""Families of differential equations: exact solutions, derivatives, losses, and points drawn."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import reptile_jax as rj
from reptile_jax.tasks import burgers, equations, heat, relative_error, residual_loss
from tests.nonsense import answered, fuzz, mostly


def finite_differences(viscosity, horizon, cells):
    """Burgers' equation from -sin(πx) by finite volumes in NumPy: x [cells + 1] and u there.

    Centred fluxes and diffusion, and Heun's method in steps within both limits of stability.
    """
    x = np.linspace(-1, 1, cells + 1)
    u, width = -np.sin(np.pi * x), 2 / cells

    def slope(u):
        middle = (u[1:] + u[:-1]) / 2
        flow = middle**2 / 2 - viscosity * np.diff(u) / width
        return np.concatenate([[0.0], -np.diff(flow) / width, [0.0]])

    number = int(np.ceil(horizon / min(0.4 * width**2 / (2 * viscosity), 0.4 * width)))
    for _ in range(number):
        step = horizon / number
        half = u + step * slope(u)
        u = (u + half + step * slope(half)) / 2
    return x, u


@pytest.mark.parametrize(
    ("viscosity", "cells", "atol"), [(0.005, 800, 4e-3), (0.02, 400, 6e-4), (0.05, 400, 1e-4)]
)
def test_the_exact_solution_of_burgers_is_that_of_finite_differences(viscosity, cells, atol):
    task = burgers(viscosity=(viscosity,) * 2, grid=(81, 3))
    task = jax.jit(task.sample)(jax.random.key(0))
    points, u = (np.asarray(leaf).reshape(3, 81, -1) for leaf in task.query.solution)
    np.testing.assert_allclose(u[0, :, 0], -np.sin(np.pi * points[0, :, 0]), atol=1e-6)
    for row, t in ((1, 0.25), (2, 0.5)):
        np.testing.assert_allclose(points[row, :, 1], t, rtol=1e-6)
        x, reference = finite_differences(viscosity, t, cells)
        np.testing.assert_allclose(points[row, :, 0], x[:: cells // 80], atol=1e-6)
        np.testing.assert_allclose(u[row, :, 0], reference[:: cells // 80], atol=atol)


@pytest.mark.parametrize("viscosity", [1e-3, 0.05, 1.0])
def test_the_quadrature_is_exact_to_rounding(viscosity):
    """Against the same mean in float64 with 80 times the points."""
    x, t = np.linspace(-1, 1, 21), np.array([1e-3, 0.3, 1.0, 2.0])
    points = np.stack(np.meshgrid(x, t), -1).reshape(-1, 2)
    z = np.linspace(-1, 1, 20_001) * (np.sqrt(points[:, 1:] / (4 * viscosity)) + 9)
    start = points[:, :1] - np.sqrt(4 * viscosity * points[:, 1:]) * z
    logits = -(z**2) - np.cos(np.pi * start) / (2 * np.pi * viscosity)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    reference = -(weights * np.sin(np.pi * start)).sum(1) / weights.sum(1)
    found = equations._burgers(jnp.asarray(points, jnp.float32), viscosity, None)
    np.testing.assert_allclose(found, reference, atol=2e-5)


@pytest.mark.parametrize(
    "family", [burgers(viscosity=(0.02, 0.05)), heat()], ids=["burgers", "heat"]
)
def test_the_exact_solution_has_no_residual_and_no_error(family):
    task = jax.jit(family.sample)(jax.random.key(1))
    solution = equations._burgers if family.advects else equations._heat
    grid = np.asarray(task.query.solution.inputs)
    # The amplitudes of a heat task, from its initial value: a sine transform.
    waves = np.sin(np.pi * grid[: family.grid[0], :1] * np.arange(1, 4))
    first = np.asarray(task.query.solution.targets)[: family.grid[0], 0]
    amplitudes = jnp.asarray(np.linalg.lstsq(waves, first, rcond=None)[0])
    exact = lambda params, points: (
        params * solution(points, task.query.viscosity, amplitudes)[:, None]
    )
    loss_fn, one = jax.jit(residual_loss(exact)), jnp.ones(())
    assert loss_fn(one, task.query) < 1e-4
    assert loss_fn(2 * one, task.query) > 1e-3
    error = jax.jit(relative_error(exact))
    assert error(one, task) < 1e-3
    np.testing.assert_allclose(error(1.1 * one, task), 0.1, rtol=0.01)
    np.testing.assert_allclose(error(0 * one, task), 1.0)


def test_the_loss_is_what_it_says_of_a_network():
    """Every term of the loss by hand, for a network with closed derivatives: a·tanh(bx + ct)."""
    apply = lambda p, points: p[0] * jnp.tanh(points @ p[1:3])[:, None]
    params = jnp.array([0.7, 1.3, -0.4])
    batch = burgers(points=7, initial_points=5, boundary_points=3)
    batch = jax.jit(batch.sample)(jax.random.key(0)).query
    a, b, c = np.asarray(params, np.float64)
    x, t = np.asarray(batch.inside, np.float64).T
    y = np.tanh(b * x + c * t)
    u, d = a * y, 1 - y**2
    residual = a * c * d + u * a * b * d + float(batch.viscosity) * 2 * a * b**2 * y * d
    start, sides = np.asarray(batch.initial.inputs)[:, 0], np.asarray(batch.boundary)
    expected = np.mean(residual**2)
    expected += np.mean((a * np.tanh(b * start) + np.sin(np.pi * start)) ** 2)
    expected += np.mean((a * np.tanh(sides @ [b, c])) ** 2)
    np.testing.assert_allclose(jax.jit(residual_loss(apply))(params, batch), expected, rtol=1e-5)


@pytest.mark.parametrize("score", [False, True])
def test_outputs_without_a_last_axis_are_refused(score):
    """They would broadcast against targets `[points, 1]`."""
    task = burgers(points=7, initial_points=5, boundary_points=3).sample(jax.random.key(0))
    apply = lambda p, points: p * jnp.sin(points[:, 0])
    loss_fn = lambda p, task: residual_loss(apply)(p, task.query)
    function = relative_error(apply) if score else loss_fn
    with pytest.raises(ValueError, match=r"they are \[\d+\] and the targets \[\d+, 1\]"):
        jax.eval_shape(function, jnp.ones(()), task)


class Odd(nn.Module):
    """A network that is no MLP: sines, a product of two branches, a residual connection."""

    @nn.compact
    def __call__(self, points):
        y = jnp.sin(nn.Dense(8)(points))
        return nn.Dense(1)(y * nn.tanh(nn.Dense(8)(points)) + jnp.exp(-jnp.square(y)))


def test_derivatives_are_those_of_finite_differences_for_any_network():
    net, step = Odd(), 1e-3
    apply = jax.jit(net.apply)
    points = jax.random.uniform(jax.random.key(0), (9, 2), jnp.float32, -1, 1)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64),
            jax.jit(net.init)(jax.random.key(1), points),
        )
        at = lambda x, t: np.asarray(
            apply(wide, jnp.asarray(points, jnp.float64) + jnp.array([[x, t]]))
        )
        u, right, left = at(0.0, 0.0), at(step, 0.0), at(-step, 0.0)
        expected = (
            u,
            (right - left) / (2 * step),
            (at(0.0, step) - at(0.0, -step)) / (2 * step),
            (right - 2 * u + left) / step**2,
        )
        found = jax.jit(partial(equations.derivatives, partial(apply, wide)))(
            points.astype(jnp.float64)
        )
        chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_points_are_redrawn_at_every_inner_step_and_lie_where_they_belong():
    family = burgers(points=300, initial_points=40, boundary_points=10, steps=4, horizon=2.0)
    task = jax.jit(family.sample)(jax.random.key(0))
    inside, initial, sides = task.support.inside, task.support.initial, task.support.boundary
    chex.assert_shape([inside, initial.inputs, sides], [(4, 300, 2), (4, 40, 2), (4, 20, 2)])
    everything = np.concatenate([np.asarray(inside).reshape(-1, 2), task.query.inside])
    assert len(np.unique(everything, axis=0)) == 5 * 300
    for axis, low, high in ((0, -1, 1), (1, 0, 2)):
        values = everything[:, axis]
        assert low <= values.min() < low + 0.05
        assert high - 0.05 < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.1)
    assert np.all(initial.inputs[..., 1] == 0)
    np.testing.assert_allclose(
        initial.targets[..., 0], -np.sin(np.pi * initial.inputs[..., 0]), atol=1e-6
    )
    assert np.all(np.sort(sides[..., 0], -1) == np.repeat([-1.0, 1.0], 10))
    assert np.all(task.support.viscosity == task.query.viscosity)
    assert len(jnp.unique(sides[..., 1])) == 80


def test_tasks_differ_in_what_their_families_say():
    tasks = jax.jit(jax.vmap(heat(waves=2).sample))(jax.random.split(jax.random.key(0), 500))
    viscosity = np.asarray(tasks.query.viscosity)
    assert 0.05 <= viscosity.min() < 0.055
    assert 0.195 < viscosity.max() <= 0.2
    x = np.asarray(tasks.query.solution.inputs)[0, :64, 0]
    start = np.asarray(tasks.query.solution.targets)[:, :64, 0]
    waves = np.sin(np.pi * x[:, None] * [1, 2])
    amplitudes = np.linalg.lstsq(waves, start.T, rcond=None)[0]
    np.testing.assert_allclose(waves @ amplitudes, start.T, atol=1e-5)
    for amplitude, most in zip(amplitudes, (1, 0.5), strict=True):
        assert -most - 1e-5 <= amplitude.min() < -0.98 * most
        assert 0.98 * most < amplitude.max() <= most + 1e-5
    # The decay, from the definition, of the whole solution.
    t = np.asarray(tasks.query.solution.inputs)[0, ::64, 1]
    decay = np.exp(-((np.pi * np.array([[1], [2]])) ** 2) * t * viscosity[:, None, None])
    expected = np.einsum("kn,nkt,xk->ntx", amplitudes, decay, waves)
    found = np.asarray(tasks.query.solution.targets).reshape(500, 16, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", [rj.reptile, pytest.param(rj.maml, marks=pytest.mark.slow)])
def test_a_few_meta_steps_learn(method):
    net, inner = rj.nn.MLP((8, 1)), optax.sgd(0.03)
    family, loss_fn = burgers(points=20, steps=3, grid=(8, 4)), residual_loss(net.apply)
    learner = rj.meta_learner(method(loss_fn, inner), inner)
    state = learner.init(jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 2))))
    how = {"num_steps": 40, "meta_batch": 2}
    _, infos = rj.meta_steps(learner, state, family, jax.random.key(1), **how)
    assert bool(infos.finite.all())
    assert infos.losses[-5:].mean() < infos.losses[:5].mean()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"viscosity": (0, 0.1)}, r"viscosity is two numbers, .* between 0.001 and 1, got \(0,"),
        ({"viscosity": (-0.1, 0.1)}, "between 0.001 and 1, got"),
        ({"viscosity": (0.1, 0.05)}, r"\(lowest, highest\), .* got \(0.1, 0.05\)"),
        ({"viscosity": 0.1}, "viscosity is two numbers"),
        ({"points": 0}, "points is at least 1, got 0"),
        ({"boundary_points": 0}, "boundary_points is at least 1, got 0"),
        ({"steps": 0}, "steps is at least 1, got 0"),
        ({"horizon": 0}, "horizon is a number between 0.001 and 2, got 0"),
        ({"grid": (8, 0)}, r"grid\[1\] is at least 1, got 0"),
        ({"grid": 8}, r"grid is two numbers of points, \(in x, in t\), got 8"),
    ],
)
@pytest.mark.parametrize("family", [burgers, heat])
def test_bad_families_are_named(family, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        family(**arguments)


@fuzz
@given(mostly(viscosity=(0.1, 1), horizon=0.5, points=5, initial_points=2, steps=2, grid=(2, 2)))
def test_families_of_anything(arguments):
    with answered():
        drawn = jax.eval_shape(burgers(**arguments).sample, jax.random.key(0))
        assert drawn.support.inside.shape[-1] == 2
