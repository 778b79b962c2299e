"""Batch norm and max-pooling with gradients that stay fast in a loop, as in `convolution`.

Both are differentiable in reverse mode any number of times; `max_pool` in forward mode as well.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax._checks import check_integers
from reptile_jax.nn._checks import Pair, check_padding
from reptile_jax.nn.convolution import pad


def max_pool(
    inputs: jax.Array, window_shape: Pair, strides: Pair | None = None, padding: Any = "VALID"
) -> jax.Array:
    """`flax.linen.max_pool` for windows that tile the image: `strides` must be `window_shape`.

    Of equal maxima the first gets the gradient, as in lax; unlike lax's gradient, this one is not
    a scatter.

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
    batch, height, width, features = inputs.shape
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(f"max_pool takes floating-point images, got {inputs.dtype}.")
    check_padding(padding)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads((height, width), window_shape, strides, padding)
    axes = list(zip((height, width), window_shape, padding, strict=True))
    rows, columns = [(extent + low + high) // window for extent, window, (low, high) in axes]
    # A negative pad removes pixels that fill no window.
    fit = [
        (low, size * window - extent - low)
        for size, (extent, window, (low, _)) in zip((rows, columns), axes, strict=True)
    ]
    high, wide = window_shape
    windows = pad(inputs, fit, -jnp.inf).reshape(batch, rows, high, columns, wide, features)
    first, *others = [windows[:, :, i, :, j] for i in range(high) for j in range(wide)]
    for other in others:
        first = jnp.where((other > first) | jnp.isnan(other), other, first)
    return first


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-3) -> jax.Array:
    """Normalises with the batch's own statistics over all axes but the last; scales and shifts.

    Statistics are in float32 at least, with the variance of centred values (a mean of squares minus
    a squared mean cancels in low precision).

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
    features, problem = np.shape(x)[-1:], None
    if not isinstance(epsilon, int | float) or not epsilon >= 0:
        problem = f"epsilon is a number of at least 0, got {epsilon!r:.80}."
    elif 0 in (features or (0,)) or np.shape(scale) != features or np.shape(bias) != features:
        problem = (
            "batch_norm takes x [..., features], scale and bias [features], got shapes "
            f"{np.shape(x)}, {np.shape(scale)} and {np.shape(bias)}."
        )
    if problem:
        raise ValueError(problem)
    return _batch_norm(float(epsilon), x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_norm(epsilon, x, scale, bias):
    return _batch_norm_forward(epsilon, x, scale, bias)[0]


def _batch_norm_forward(epsilon, x, scale, bias):
    wide = x.astype(np.promote_types(x.dtype, jnp.float32)).reshape(-1, x.shape[-1])
    centred = wide - wide.mean(0, keepdims=True)
    inverse = lax.rsqrt(jnp.square(centred).mean(0, keepdims=True) + epsilon)
    normed = centred * inverse
    y = normed * scale.astype(wide.dtype)[None] + bias.astype(wide.dtype)[None]
    return y.astype(x.dtype).reshape(x.shape), (normed, inverse, scale, bias)


def _batch_norm_backward(epsilon, saved, cotangent):
    normed, inverse, scale, bias = saved
    g = cotangent.reshape(normed.shape).astype(normed.dtype)
    d_bias, d_scale = g.sum(0, keepdims=True), (g * normed).sum(0, keepdims=True)
    count = normed.shape[0]
    d_x = (inverse * scale.astype(g.dtype)[None]) * (
        g - d_bias / count - normed * (d_scale / count)
    )
    return (
        d_x.astype(cotangent.dtype).reshape(cotangent.shape),
        d_scale[0].astype(scale.dtype),
        d_bias[0].astype(bias.dtype),
    )


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
