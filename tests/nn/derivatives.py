"""Arrays, and first and second derivatives of a function, to compare it with a reference."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed, *shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(actual, expected, tolerance=1e-10):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def value_and_gradients(function, *args):
    """The value, and the gradients of a sum that weighs every element differently."""

    @jax.jit
    def run(*args):
        value, pull = jax.vjp(function, *args)
        weights = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        return value, pull(weights)

    return run(*args)


def second_order(function, *args):
    """The gradient of a function of gradients, reverse over reverse, as in MAML."""
    indices = tuple(range(len(args)))

    def loss(*args):
        return jnp.sin(function(*args)).sum()

    def after_a_step(*args):
        steps = jax.grad(loss, indices)(*args)
        return loss(*(a - 0.1 * step for a, step in zip(args, steps, strict=True)))

    return jax.jit(jax.grad(after_a_step, indices))(*args)
