"""Each platform's formulation is the same layer: all of them run here, on a CPU."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from reptile_jax.nn import batch_norm, conv_general_dilated, max_pool
from reptile_jax.nn._checks import LAYOUT
from reptile_jax.nn.layers import pooled_batch_norm
from tests.nn.derivatives import close, normal, second_order, value_and_gradients

PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
    """Compiles what is for another platform."""

    def choose(*args, default, **branches):
        return branches.get(request.param, default)(*args)

    monkeypatch.setattr(lax, "platform_dependent", choose)
    return request.param


@pytest.mark.parametrize(
    ("strides", "dilation", "padding"),
    [
        ((1, 1), (1, 1), "SAME"),
        ((2, 2), (1, 1), "SAME"),
        ((3, 2), (1, 2), [(-1, 2), (1, -2)]),
        ((2, 1), (2, 1), [(2, 0), (0, 3)]),
    ],
)
def test_convolutions(platform, strides, dilation, padding):
    how = dict(window_strides=strides, padding=padding, rhs_dilation=dilation)
    how |= dict(dimension_numbers=LAYOUT)
    with jax.enable_x64(True):
        args = normal(0, 2, 7, 6, 2), normal(1, 3, 2, 2, 3)
        functions = [lambda *a, f=f: f(*a, **how) for f in (lax_convolution, conv_general_dilated)]
        theirs, ours = ([value_and_gradients(f, *args), second_order(f, *args)] for f in functions)
        close(ours, theirs)


lax_convolution = lax.conv_general_dilated


def test_convolutions_of_many_tasks_and_of_low_precision(platform):
    how = dict(window_strides=(2, 2), padding="SAME", dimension_numbers=LAYOUT)
    ours = lambda x, w: value_and_gradients(lambda *a: conv_general_dilated(*a, **how), x, w)
    theirs = lambda x, w: value_and_gradients(lambda *a: lax_convolution(*a, **how), x, w)
    x, w = normal(0, 3, 2, 5, 6, 2, dtype=jnp.float32), normal(1, 3, 3, 3, 2, 3, dtype=jnp.float32)
    close(jax.vmap(ours)(x, w), jax.vmap(theirs)(x, w), 1e-4)
    how["preferred_element_type"] = jnp.float32
    value, gradients = ours(*(a[0].astype(jnp.bfloat16) for a in (x, w)))
    close(value, theirs(x[0], w[0])[0], 0.1)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(jnp.bfloat16)}


def test_batch_norm(platform):
    def reference(x, scale, bias):
        normed = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3)
        return normed * scale[None] + bias[None]

    with jax.enable_x64(True):
        args = normal(0, 12, 3), normal(1, 3), normal(2, 3)
        close(value_and_gradients(batch_norm, *args), value_and_gradients(reference, *args))
        close(second_order(batch_norm, *args), second_order(reference, *args), 1e-8)


def test_batch_norm_of_no_examples(platform):
    one = jnp.ones(3)
    value, gradients = value_and_gradients(batch_norm, jnp.zeros((0, 3)), one, one)
    assert value.shape == (0, 3)
    assert [gradient.shape for gradient in gradients] == [(0, 3), (3,), (3,)]


def test_batch_norm_far_from_zero(platform):
    # A mean of squares minus a squared mean would lose all digits here.
    x = normal(0, 64, 3, dtype=jnp.float32)
    one, zero = jnp.ones(3), jnp.zeros(3)
    close(batch_norm(x + 1000.0, one, zero), batch_norm(x, one, zero), 1e-3)


def test_max_pool(platform):
    pool = lambda x: max_pool(x, (2, 2), (2, 2), "SAME")
    windows = lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-jnp.inf)
    corners = [(i, j) for i, j in itertools.product((0, 1), (0, 1))]
    reference = lambda x: jnp.max(
        jnp.stack([windows(x)[:, i::2, j::2] for i, j in corners]), axis=0
    )
    images = normal(0, 2, 5, 5, 3, dtype=jnp.float32)
    close(value_and_gradients(pool, images), value_and_gradients(reference, images), 1e-6)
    close(second_order(pool, images), second_order(reference, images), 1e-5)
    # Of equal maxima the first gets the gradient.
    gradient = jax.grad(lambda x: pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    assert gradient.ravel().tolist() == [1, 0, 0, 0]


def test_the_program_decides_and_not_the_machine_that_traces_it():
    layer = lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT)
    traced = jax.jit(layer).trace(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
    for platform in PLATFORMS:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == (platform == "tpu")


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_batch_norm_that_is_pooled(platform, size):
    def reference(x, scale, bias):
        mean, variance = (f(x, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.var))
        y = (x - mean) / jnp.sqrt(variance + 1e-3) * scale[None, None, None]
        return nn.max_pool(y + bias[None, None, None], (2, 2), (2, 2), "SAME")

    ours = functools.partial(pooled_batch_norm, 1e-3)
    with jax.enable_x64(True):
        # A scale below zero turns the order of a window round.
        args = normal(0, 2, *size, 3), jnp.array([0.7, -1.3, 1.0]), normal(2, 3)
        close(value_and_gradients(ours, *args), value_and_gradients(reference, *args))
        close(second_order(ours, *args), second_order(reference, *args), 1e-8)


def test_batch_norm_that_is_pooled_chooses_as_max_pool_does(platform):
    # The first of equal maxima has the gradient, and NaN is handed on.
    x = jnp.array([1.0, 1.0, 2.0, 0.0, 3.0, 3.0, jnp.nan, 1.0], jnp.float32).reshape(1, 2, 4, 1)
    one, zero = jnp.ones(1), jnp.zeros(1)
    norm = lambda x, scale: max_pool(batch_norm(x, scale, zero), (2, 2), (2, 2), "SAME")
    pooled = lambda x, scale: pooled_batch_norm(1e-3, x, scale, zero)
    for images in (x, x[:, :, :2]):
        for scale in (one, -one):
            theirs, ours = (value_and_gradients(f, images, scale) for f in (norm, pooled))
            close(ours, theirs, 1e-5)
