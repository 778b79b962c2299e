"""A convolution that stays fast inside an inner loop: under `vmap` over weights, and in `scan`.

`lax.conv_general_dilated` has two problems there. On CPU, the gradients of a convolution in a loop
miss the compiler's fast path, because the compiler only changes the layout of the entry computation
(jax-ml/jax#12868): a step is ten times slower. On a GPU, `vmap` over per-task weights makes grouped
convolutions, whose weight gradients have no fast kernel. On both, a convolution and its gradients
are matrix products of patches here (`_matrix_products`). On a TPU the native convolution is
best, by the compiler's estimate (`docs/results/speed.md`). The platform is that of the compiled
program, not of the machine that traces it.

    model = nn.Conv(64, (3, 3), strides=2, conv_general_dilated=conv_general_dilated)

It is differentiable in reverse mode, any number of times (MAML), but not in forward mode
(`jax.jvp`, `jax.hessian` by forward-over-reverse).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax._values import check_integers
from reptile_jax.nn import _matrix_products as products
from reptile_jax.nn._checks import (
    LAYOUT,
    check_conv_dtypes,
    check_conv_shapes,
    check_conv_supported,
    check_padding,
    check_pair,
)
from reptile_jax.nn._matrix_products import Geometry


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated` for images, in the form that is fastest on each platform.

    It is equal to lax's up to rounding.

    Pass it to Flax's two-dimensional `Conv`, linen or NNX, as `conv_general_dilated`.

    Args:
      lhs: images `[batch, height, width, features]`.
      rhs: kernel `[height, width, features / groups, out features]`, of the same dtype.
      window_strides, rhs_dilation: pairs of positive integers; None means no dilation.
      padding: 'SAME', 'SAME_LOWER', 'VALID', or two pairs of integers, which may be negative.
      dimension_numbers: NHWC, HWIO, NHWC in any form that lax accepts.
      feature_group_count, precision, preferred_element_type: as in lax.
      lhs_dilation, batch_group_count, out_sharding: only their defaults are supported.

    Returns:
      `[batch, out height, out width, out features]`, of the inputs' dtype or the preferred one.

    Raises:
      NotImplementedError: for what lax supports and this does not.
      ValueError: for shapes that do not fit together.
      TypeError: for dtypes that are not floating point, or that differ.
    """
    check_conv_supported(lhs, rhs, lhs_dilation, dimension_numbers, batch_group_count, out_sharding)
    check_conv_dtypes(lhs, rhs, preferred_element_type)
    (groups,) = check_integers(feature_group_count=feature_group_count)
    strides = check_pair("window_strides", window_strides)
    dilation = (1, 1) if rhs_dilation is None else check_pair("rhs_dilation", rhs_dilation)
    check_padding(padding)
    kernel = rhs.shape[:2]
    if isinstance(padding, str):
        dilated = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], dilated, strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    check_conv_shapes(lhs.shape, rhs.shape, groups, padding)
    geometry = Geometry(lhs.shape[1:3], kernel, strides, dilation, padding, precision)
    dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    if groups == 1:
        return _convolve(geometry, dtype, lhs, rhs)
    grouped = jax.vmap(partial(_convolve, geometry, dtype), in_axes=(3, 3), out_axes=3)
    images = lhs.reshape(*lhs.shape[:3], groups, rhs.shape[2])
    out = grouped(images, rhs.reshape(*rhs.shape[:3], groups, rhs.shape[3] // groups))
    return out.reshape(*out.shape[:3], rhs.shape[3])


# A convolution is linear in the image and in the kernel. Contracted with a cotangent of its output
# it is a trilinear form, and the three functions below are its partial derivatives. The gradients
# of each are the other two, so each has one formulation on a platform for gradients of every order.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(geometry: Geometry, dtype: Any, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Image `[batch, h, w, in]`, kernel `[kh, kw, in, out]` -> `[batch, oh, ow, out]`."""

    def native(image, kernel):
        wide = np.promote_types(np.promote_types(image.dtype, kernel.dtype), dtype)
        return _native(geometry, image.astype(wide), kernel.astype(wide)).astype(dtype)

    ours = partial(products.convolve, geometry, dtype)
    return _by_platform(ours, native, image, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_gradient(
    geometry: Geometry, dtype: Any, image: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Image `[batch, h, w, in]`, cotangent `[batch, oh, ow, out]` -> `[kh, kw, in, out]`."""

    def native(image, cotangent):
        shape = (*geometry.kernel, image.shape[3], cotangent.shape[3])
        return _transpose(partial(_native, geometry), dtype, shape, image, cotangent)

    ours = partial(products.kernel_gradient, geometry, dtype)
    return _by_platform(ours, native, image, cotangent)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _image_gradient(
    geometry: Geometry, dtype: Any, cotangent: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Cotangent `[batch, oh, ow, out]`, kernel `[kh, kw, in, out]` -> `[batch, h, w, in]`."""

    def native(cotangent, kernel):
        shape = (len(cotangent), *geometry.image, kernel.shape[2])
        of_image = lambda kernel, image: _native(geometry, image, kernel)
        return _transpose(of_image, dtype, shape, kernel, cotangent)

    ours = partial(products.image_gradient, geometry, dtype)
    return _by_platform(ours, native, cotangent, kernel)


def _by_platform(ours, native, *args: jax.Array) -> jax.Array:
    on_cpu, elsewhere = (partial(ours, on_cpu=on_cpu) for on_cpu in (True, False))
    return lax.platform_dependent(*args, cpu=on_cpu, tpu=native, default=elsewhere)


def _native(geometry: Geometry, image: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        image,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=LAYOUT,
        precision=geometry.precision,
    )


def _transpose(function, dtype: Any, shape: tuple, fixed: jax.Array, cotangent: jax.Array):
    """The transpose of `function(fixed, ·)`, linear on arrays of `shape`, at the cotangent."""
    wide = np.promote_types(np.promote_types(fixed.dtype, cotangent.dtype), dtype)
    linear = partial(function, fixed.astype(wide))
    (result,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, wide))(
        cotangent.astype(wide)
    )
    return result.astype(dtype)


def _convolve_backward(geometry, dtype, saved, cotangent):
    image, kernel = saved
    return (
        _image_gradient(geometry, image.dtype, cotangent, kernel),
        _kernel_gradient(geometry, kernel.dtype, image, cotangent),
    )


def _kernel_gradient_backward(geometry, dtype, saved, kernel):
    image, cotangent = saved
    return (
        _image_gradient(geometry, image.dtype, cotangent, kernel),
        _convolve(geometry, cotangent.dtype, image, kernel),
    )


def _image_gradient_backward(geometry, dtype, saved, image):
    cotangent, kernel = saved
    return (
        _convolve(geometry, cotangent.dtype, image, kernel),
        _kernel_gradient(geometry, kernel.dtype, image, cotangent),
    )


def _saves_arguments(function):
    return lambda geometry, dtype, *args: (function(geometry, dtype, *args), args)


_convolve.defvjp(_saves_arguments(_convolve), _convolve_backward)
_kernel_gradient.defvjp(_saves_arguments(_kernel_gradient), _kernel_gradient_backward)
_image_gradient.defvjp(_saves_arguments(_image_gradient), _image_gradient_backward)
