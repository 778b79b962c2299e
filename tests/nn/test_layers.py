"""Max-pooling and batch norm equal their references: values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptile_jax.nn import batch_norm, max_pool
from tests.nn.derivatives import close, normal, second_order, value_and_gradients
from tests.nonsense import answered, fuzz, mostly


@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(
    size=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.sampled_from(("SAME", "VALID", [(1, 0), (0, 1)])),
    values=st.sampled_from((2, 1000)),
    seed=st.integers(0, 99),
)
def test_max_pool_and_its_gradients_equal_those_of_flax(size, window, padding, values, seed):
    # With few different values most windows have ties, and a tie goes to the first.
    images = np.random.default_rng(seed).integers(-values, values, (2, *size, 3))
    images = jnp.asarray(images, jnp.float32)
    ours = value_and_gradients(lambda x: max_pool(x, window, window, padding), images)
    theirs = value_and_gradients(lambda x: nn.max_pool(x, window, window, padding), images)
    close(ours, theirs, 1e-6)


def test_max_pool_hands_on_what_is_not_finite():
    images = jnp.array([1.0, jnp.nan, jnp.nan, 2.0, -jnp.inf, -jnp.inf, jnp.inf, 0.0])
    images = images.reshape(1, 2, 4, 1)
    for padding in ("SAME", "VALID"):
        ours, theirs = (f(images, (1, 2), (1, 2), padding) for f in (max_pool, nn.max_pool))
        np.testing.assert_array_equal(ours, theirs)


def test_max_pool_is_differentiable_twice():
    images = normal(0, 2, 5, 5, 3, dtype=jnp.float32)
    ours, theirs = (
        second_order(lambda x, f=f: f(x, (2, 2), (2, 2), "SAME"), images)
        for f in (max_pool, nn.max_pool)
    )
    close(ours, theirs, 1e-5)


def test_max_pool_refuses_windows_that_overlap():
    for strides in (None, (1, 2)):
        with pytest.raises(NotImplementedError, match="strides equal to window_shape"):
            max_pool(jnp.ones((1, 4, 4, 1)), (2, 2), strides)
    with pytest.raises(NotImplementedError, match=r"got shape \(4, 4, 1\)"):
        max_pool(jnp.ones((4, 4, 1)), (2, 2), (2, 2))


def reference_batch_norm(x, scale, bias):
    x = x.reshape(-1, x.shape[-1])
    normed = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3)
    return normed * scale[None] + bias[None]


@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 3, 3)])
def test_batch_norm_and_its_gradients_equal_their_definition(shape):
    def flat(*args):
        return batch_norm(*args).reshape(-1, 3)

    with jax.enable_x64(True):
        args = normal(0, *shape), normal(1, 3), normal(2, 3)
        expected = value_and_gradients(reference_batch_norm, *args)
        close(value_and_gradients(flat, *args), expected)
        close(second_order(flat, *args), second_order(reference_batch_norm, *args), 1e-8)


def test_batch_norm_is_exact_far_from_zero_and_keeps_its_dtype():
    x = normal(0, 64, 3, dtype=jnp.float32)
    one, zero = jnp.ones(3), jnp.zeros(3)
    close(batch_norm(x + 1000.0, one, zero), batch_norm(x, one, zero), 1e-3)
    low = [a.astype(jnp.bfloat16) for a in (x, one, zero)]
    value, gradients = value_and_gradients(batch_norm, *low)
    assert {a.dtype for a in (value, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    close(value.astype(jnp.float32), batch_norm(x, one, zero), 0.05)


def test_batch_norm_with_the_statistics_of_each_task_under_vmap():
    x = normal(0, 4, 2, 3, 3, 5, dtype=jnp.float32)
    scale, bias = normal(1, 4, 5, dtype=jnp.float32), normal(2, 4, 5, dtype=jnp.float32)
    one = jnp.stack([batch_norm(*args) for args in zip(x, scale, bias, strict=True)])
    close(jax.vmap(batch_norm)(x, scale, bias), one, 1e-5)


IMAGES = jnp.ones((2, 5, 5, 2))


@fuzz
@given(
    mostly(window_shape=(2, 2), strides=(2, 2), padding="SAME"),
    mostly(x=IMAGES, scale=jnp.ones(2), bias=jnp.ones(2), epsilon=1e-3),
)
def test_layers_of_anything(pool, norm):
    with answered():
        jax.eval_shape(lambda: max_pool(IMAGES, **pool))
    with answered():
        jax.eval_shape(lambda: batch_norm(**norm))
