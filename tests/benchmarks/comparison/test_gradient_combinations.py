"""The sums of inner gradients are the paper's."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import reptile_jax as rj
from benchmarks.comparison import gradient_combinations

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


SMALL = gradient_combinations.SIZES["small"]


def test_the_papers_ten_curves_are_weights_of_the_inner_gradients():
    curves = dict(gradient_combinations.combinations(SMALL).values())
    assert len(curves) == 10
    assert curves["g1 + g2"] == (1, 1)
    assert curves["(g1 + g2 + g3 + g4) / 4"] == (0.25,) * 4
    assert curves["g3"] == (0, 0, 1)


def test_the_sums_outer_rate_is_the_papers_for_reptile():
    """Their update is ε times the way the inner loop went; ours sums gradients of the mean loss."""
    alpha, epsilon = gradient_combinations.INNER_RATE, gradient_combinations.META_RATE
    assert (alpha, epsilon) == (0.075, 0.25)
    waves = rj.tasks.sinusoids(points=8, shots=4, steps=2, batch_size=2)
    task = waves.sample(jax.random.key(0))
    params, inner = jnp.ones((1, 1)), optax.sgd(alpha)
    loss_fn = lambda params, batch: jnp.mean((batch.inputs @ params - batch.targets) ** 2)
    reptile = rj.reptile(loss_fn, inner).compute(params, None, task).gradient
    summed = rj.weighted_gradients(loss_fn, inner, (1.0, 1.0)).compute(params, None, task).gradient
    scale = lambda rate, tree: jax.tree.map(lambda leaf: rate * leaf, tree)
    chex.assert_trees_all_close(scale(epsilon, reptile), scale(epsilon * alpha, summed), rtol=1e-4)
