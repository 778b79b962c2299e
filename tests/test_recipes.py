"""The recipes that the benchmarks try differ from o15 in what their names say."""

import dataclasses
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import recipes

from reptile_jax import Task, models, presets, reptile


def test_recipes_get_as_many_inner_gradients():
    for recipe in recipes.RECIPES.values():
        config = recipes.configured(recipe, 2000)
        presets.check(config)
        assert config.meta_steps * config.meta_batch * config.inner_steps == 2000 * 5 * 5
        assert dataclasses.replace(config, **recipe.changes) == config


def test_later_steps_is_reptile_with_another_weight_on_the_first_update():
    loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
    params, task = jnp.ones(2), Task(jnp.arange(6.0).reshape(3, 2))
    sgd = optax.sgd(0.1)
    delta = {w: recipes._later_steps(w)(loss_fn, sgd).estimate(params, None, task) for w in (0, 1)}
    whole = reptile(loss_fn, sgd).estimate(params, None, task)
    chex.assert_trees_all_close(delta[1], whole, rtol=1e-6)
    first = 0.1 * 2 * (params - task.support[0])
    np.testing.assert_allclose(delta[1].gradient - delta[0].gradient, first, rtol=1e-6)


def test_a_head_left_alone_stays_and_the_rest_moves():
    config = presets.FewShotImages(size=8, meta_steps=2)
    params = models.omniglot_net(5).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    start = recipes._zero_head(params)
    outer = recipes._head_left_alone(config)
    updates, _ = outer.update(jax.tree.map(jnp.ones_like, start), outer.init(start), start)
    moved = optax.apply_updates(start, updates)
    assert not any(leaf.any() for leaf in jax.tree.leaves(moved["params"]["Dense_0"]))
    kernel = params["params"]["Conv_0"]["kernel"]
    np.testing.assert_allclose(moved["params"]["Conv_0"]["kernel"], kernel - 1, rtol=1e-6)


def test_an_inner_rate_is_annealed_over_all_inner_steps_and_ends_at_the_presets():
    config = presets.FewShotImages(meta_steps=2, inner_steps=2, inner_rate=0.01)
    inner = recipes._inner_from(0.03)(config)
    state, rates = inner.init(jnp.zeros(())), []
    for _ in range(6):
        # The first moment is off and the gradient constant, so an update is the rate.
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            update, state = inner.update(jnp.ones(()), state)
        rates.append(-float(update))
    np.testing.assert_allclose(rates, [0.03, 0.025, 0.02, 0.015, 0.01, 0.01], rtol=1e-4)
