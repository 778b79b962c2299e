"""Batch norm and max-pooling that stay fast in a loop on each platform, as `convolution` does.

Both are differentiable in reverse mode any number of times; `max_pool` in forward mode as well.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax._values import check_integers, check_number
from reptile_jax.nn._checks import Pair, check_padding
from reptile_jax.nn._matrix_products import pad


def max_pool(
    inputs: jax.Array, window_shape: Pair, strides: Pair, padding: Any = "VALID"
) -> jax.Array:
    """`flax.linen.max_pool` for windows that tile the image: `strides` must be `window_shape`.

    Of equal maxima the first gets the gradient, as in lax. Lax's own gradient is a scatter, which
    is best on a TPU and worst elsewhere.

    Args:
      inputs: `[batch, height, width, features]`.
      window_shape, strides: (height, width) in pixels.
      padding: as in `conv_general_dilated`.

    Returns:
      `[batch, rows of windows, columns of windows, features]`.

    Raises:
      NotImplementedError: for windows that overlap or leave gaps, and for other shapes.
      TypeError: for images that are not floating-point, or windows that are not of integers.
      ValueError: for windows below 1, or padding that is neither a name nor two pairs.
    """
    sizes = window_shape if isinstance(window_shape, tuple | list) else ()
    check_integers(**{f"window_shape[{axis}]": size for axis, size in enumerate(sizes)})
    tiles = len(sizes) == 2 and isinstance(strides, tuple | list) and [*strides] == [*sizes]
    if np.ndim(inputs) != 4 or not tiles:
        raise NotImplementedError(
            "max_pool needs [batch, height, width, features] and strides equal to window_shape; "
            f"got shape {np.shape(inputs)}, window_shape={window_shape}, strides={strides}. "
            "For anything else use flax.linen.max_pool."
        )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"max_pool takes floating-point images, got {inputs.dtype}.")
    check_padding(padding)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], window_shape, strides, padding)
    tiled = partial(_max_of_tiles, tuple(window_shape), padding)
    native = partial(nn.max_pool, window_shape=window_shape, strides=strides, padding=padding)
    return lax.platform_dependent(inputs, tpu=native, default=tiled)


def _max_of_tiles(window_shape, padding, inputs):
    batch, height, width, features = inputs.shape
    axes = list(zip((height, width), window_shape, padding, strict=True))
    rows, columns = [(extent + low + high) // window for extent, window, (low, high) in axes]
    # A negative pad removes pixels that fill no window.
    fit = [
        (low, size * window - extent - low)
        for size, (extent, window, (low, _)) in zip((rows, columns), axes, strict=True)
    ]
    high, wide = window_shape
    windows = pad(inputs, fit, -jnp.inf).reshape(batch, rows, high, columns, wide, features)
    return _first_maxima(windows)[0]


def _first_maxima(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[batch, rows, high, columns, wide, features]` -> the windows' maxima, and which they are."""
    _, _, high, _, wide, _ = windows.shape
    first, *others = [windows[:, :, i, :, j] for i in range(high) for j in range(wide)]
    which = jnp.zeros(first.shape, jnp.int32)
    for index, other in enumerate(others, 1):
        more = (other > first) | jnp.isnan(other)
        first, which = jnp.where(more, other, first), jnp.where(more, index, which)
    return first, which


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-3) -> jax.Array:
    """Normalises with the batch's own statistics over all axes but the last; scales and shifts.

    Statistics are in float32 at least: in two passes on a CPU, in one on other platforms.

    Args:
      x: `[..., features]`.
      scale, bias: `[features]`.
      epsilon: added to the variance.

    Raises:
      TypeError: for what is not a floating-point array.
      ValueError: for shapes that do not fit together, or an epsilon below 0.
    """
    dtypes = [getattr(array, "dtype", None) for array in (x, scale, bias)]
    if not all(dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        given = ", ".join(str(dtype or "no array") for dtype in dtypes)
        raise TypeError(f"batch_norm takes floating-point arrays, got {given}.")
    epsilon, features = check_number("epsilon", epsilon, least=0), np.shape(x)[-1:]
    if 0 in (features or (0,)) or np.shape(scale) != features or np.shape(bias) != features:
        raise ValueError(
            "batch_norm takes x [..., features], scale and bias [features], got shapes "
            f"{np.shape(x)}, {np.shape(scale)} and {np.shape(bias)}."
        )
    return _batch_norm(epsilon, x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(epsilon, x, scale, bias):
    return _batch_norm_forward(epsilon, x, scale, bias)[0]


def _batch_norm_forward(epsilon, x, scale, bias):
    wide = x.astype(np.promote_types(x.dtype, jnp.float32)).reshape(-1, x.shape[-1])
    mean, variance = _moments(wide)
    inverse = lax.rsqrt(variance + epsilon)[None]
    # What is saved is centred, not normed: the variance has already made that.
    centred = wide - mean[None]
    y = centred * (inverse * scale.astype(wide.dtype)[None]) + bias.astype(wide.dtype)[None]
    return y.astype(x.dtype).reshape(x.shape), (centred, inverse, scale, bias)


def _batch_norm_backward(epsilon, saved, cotangent):
    centred, inverse, scale, bias = saved
    g = cotangent.reshape(centred.shape).astype(centred.dtype)
    d_bias, moment = _sums(g, g * centred)
    count, d_scale = centred.shape[0], moment * inverse[0]
    d_x = (inverse * scale.astype(g.dtype)[None]) * (
        g - d_bias[None] / count - centred * (inverse * (d_scale[None] / count))
    )
    return (
        d_x.astype(cotangent.dtype).reshape(cotangent.shape),
        d_scale.astype(scale.dtype),
        d_bias.astype(bias.dtype),
    )


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def pooled_batch_norm(epsilon: float, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`max_pool` of `batch_norm`, in windows of 2x2 with padding "SAME", to rounding.

    `[batch, height, width, features]` -> `[batch, height / 2, width / 2, features]`, rounded up.
    """
    norm = partial(_batch_norm, epsilon)
    apart = lambda *args: max_pool(norm(*args), (2, 2), strides=(2, 2), padding="SAME")
    together = partial(_pooled_batch_norm, epsilon)
    return lax.platform_dependent(x, scale, bias, cpu=together, default=apart)


# Batch norm rises or falls with x, by the sign of the scale. So the extremes of the windows are
# taken first, and only they are normalised: far fewer passes over x, forward and backward. Where a
# scale is 0, a window's values are equal, and its gradient is taken at the maximum of x.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pooled_batch_norm(epsilon, x, scale, bias):
    return _pooled_forward(epsilon, x, scale, bias)[0]


def _pooled_forward(epsilon, x, scale, bias):
    wide = x.astype(np.promote_types(x.dtype, jnp.float32))
    mean, variance = _moments(wide.reshape(-1, x.shape[-1]))
    mean, inverse = _on_pixels(mean), _on_pixels(lax.rsqrt(variance + epsilon))
    sign = _on_pixels(jnp.where(scale < 0, -1, 1).astype(wide.dtype))
    batch, height, width, features = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    windows = pad(wide * sign, ((0, height % 2), (0, width % 2)), -jnp.inf)
    extremes, which = _first_maxima(windows.reshape(batch, rows, 2, columns, 2, features))
    normed = (extremes * sign - mean) * inverse
    y = normed * _on_pixels(scale.astype(wide.dtype)) + _on_pixels(bias.astype(wide.dtype))
    return y.astype(x.dtype), (x, which, normed, mean, inverse, scale, bias)


def _pooled_backward(epsilon, saved, cotangent):
    x, which, normed, mean, inverse, scale, bias = saved
    batch, height, width, features = x.shape
    g, wide = cotangent.astype(normed.dtype), x.astype(normed.dtype)
    d_bias, d_scale = g.sum((0, 1, 2)), (g * normed).sum((0, 1, 2))
    spread = lambda pooled: pooled[:, :, None, :, None]
    index = jnp.arange(4, dtype=which.dtype).reshape(1, 1, 2, 1, 2, 1)  # of pixels in a window
    routed = jnp.where(spread(which) == index, spread(g), 0)
    routed = routed.reshape(batch, 2 * g.shape[1], 2 * g.shape[2], features)[:, :height, :width]
    count = batch * height * width
    away = (wide - mean) * inverse * _on_pixels(d_scale / count)
    d_x = (inverse * _on_pixels(scale.astype(g.dtype))) * (
        routed - _on_pixels(d_bias / count) - away
    )
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


def _on_pixels(features):
    """`[features]` -> `[1, 1, 1, features]`."""
    return features[None, None, None]


_pooled_batch_norm.defvjp(_pooled_forward, _pooled_backward)


@jax.custom_vjp
def _moments(x):
    """Mean and variance over the rows of `[rows, features]`."""
    return lax.platform_dependent(x, cpu=_centred_moments, default=_moments_in_one_pass)


def _centred_moments(x):
    mean = x.mean(0)
    return mean, jnp.square(x - mean[None]).mean(0)


def _moments_in_one_pass(x):
    # Shifted by one of the n rows, the squared mean is at most n times the variance, and most often
    # about as large: what cancels is rounding, wherever the mean is.
    pilot = x[:1].sum(0)  # of no rows, zero
    shifted = x - pilot[None]
    total, squares = _sums(shifted, jnp.square(shifted))
    mean = total / x.shape[0]
    return pilot + mean, jnp.maximum(squares / x.shape[0] - jnp.square(mean), 0)


def _moments_forward(x):
    mean, variance = _moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(saved, cotangents):
    x, mean = saved
    d_mean, d_variance = cotangents
    return ((d_mean[None] + 2 * d_variance[None] * (x - mean[None])) / x.shape[0],)


_moments.defvjp(_moments_forward, _moments_backward)


def _sums(a, b):
    """The sums over the rows of two arrays `[rows, features]`."""
    apart = lambda a, b: (a.sum(0), b.sum(0))
    # One sum of both is one kernel. Elsewhere the compiler does that by itself, or would copy.
    stacked = lambda a, b: tuple(jnp.stack([a, b]).sum(1))
    return lax.platform_dependent(a, b, cuda=stacked, rocm=stacked, default=apart)
