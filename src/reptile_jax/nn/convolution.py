"""A convolution that stays fast inside an inner loop: under `vmap` over weights, and in `scan`.

`lax.conv_general_dilated` has two problems there. On CPU, the gradients of a convolution in a loop
miss the compiler's fast path, because the compiler only changes the layout of the entry computation
(jax-ml/jax#12868): a step is ten times slower. Elsewhere, `vmap` over per-task weights makes
grouped convolutions, whose weight gradients have no fast kernel. Here a convolution is one matrix
product of patches with the kernel, and so are both of its gradients, written by hand. Under `vmap`
these are batched matrix products.

    model = nn.Conv(64, (3, 3), strides=2, conv_general_dilated=conv_general_dilated)

It is differentiable in reverse mode, any number of times (MAML), but not in forward mode
(`jax.jvp`, `jax.hessian` by forward-over-reverse).
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax._checks import check_integers
from reptile_jax.nn._checks import (
    Pair,
    check_conv_dtypes,
    check_conv_shapes,
    check_conv_supported,
    check_padding,
    check_pair,
)


class _Geometry(NamedTuple):
    """The static sizes of a two-dimensional convolution."""

    image: Pair
    kernel: Pair
    strides: Pair
    dilation: Pair
    padding: tuple[tuple[int, int], ...]  # (before, after) on each axis
    precision: Any

    def output(self) -> Pair:
        """Output pixel o at tap t reads image pixel `o * stride + t * dilation - padding[0]`."""
        return tuple(
            max(0, (size + low + high - (taps - 1) * dilation - 1) // stride + 1)
            for size, taps, stride, dilation, (low, high) in zip(
                self.image, self.kernel, self.strides, self.dilation, self.padding, strict=True
            )
        )


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
    """`lax.conv_general_dilated` for images, as matrix products; equal to it up to rounding.

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
    geometry = _Geometry(lhs.shape[1:3], kernel, strides, dilation, padding, precision)
    dtype = jnp.dtype(preferred_element_type or lhs.dtype)
    if groups == 1:
        return _convolve(geometry, dtype, lhs, rhs)
    grouped = jax.vmap(partial(_convolve, geometry, dtype), in_axes=(3, 3), out_axes=3)
    images = lhs.reshape(*lhs.shape[:3], groups, rhs.shape[2])
    out = grouped(images, rhs.reshape(*rhs.shape[:3], groups, rhs.shape[3] // groups))
    return out.reshape(*out.shape[:3], rhs.shape[3])


# A convolution is linear in the image and in the kernel. Contracted with a cotangent of its output
# it is a trilinear form, and the three functions below are its partial derivatives. The gradients
# of each are the other two, so gradients of every order are matrix products.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve(geometry: _Geometry, dtype: Any, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Image `[batch, h, w, in]`, kernel `[kh, kw, in, out]` -> `[batch, oh, ow, out]`."""
    taps = kernel.reshape(-1, kernel.shape[-1])
    return _contract(geometry, dtype, _patches(geometry, image), taps, ((3,), (0,)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel_gradient(
    geometry: _Geometry, dtype: Any, image: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Image `[batch, h, w, in]`, cotangent `[batch, oh, ow, out]` -> `[kh, kw, in, out]`."""
    # Recomputed from the image: within one program the compiler shares the forward pass's patches.
    # Both operands are matrices: the compiler transposes those with several contracted axes.
    patches = _patches(geometry, image)
    patches = patches.reshape(-1, patches.shape[-1])
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    if patches.shape[1] <= cotangent.shape[1]:
        gradient = _contract(geometry, dtype, patches, cotangent, ((0,), (0,)))
    else:
        # On CPU a product copies a transposed left operand, so the smaller one goes there. Without
        # the barrier the compiler swaps them back, to save the transpose of the result.
        gradient = _contract(geometry, dtype, cotangent, patches, ((0,), (0,)))
        gradient = lax.optimization_barrier(gradient).T
    return gradient.reshape(*geometry.kernel, image.shape[-1], cotangent.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _image_gradient(
    geometry: _Geometry, dtype: Any, cotangent: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Cotangent `[batch, oh, ow, out]`, kernel `[kh, kw, in, out]` -> `[batch, h, w, in]`.

    One product gives every output pixel's share for each of its taps. Image pixels in the same
    phase (index modulo the stride) are read by the same taps, so a phase is a sum of shifted
    blocks. This is a gather; a scatter into the strided image would go element by element.
    """
    batch, features = cotangent.shape[0], kernel.shape[2]
    taps = kernel.reshape(-1, kernel.shape[3])
    shares = _contract(geometry, dtype, cotangent, taps, ((3,), (1,)))
    shares = shares.reshape(*cotangent.shape[:3], *geometry.kernel, features)
    (rows, row_phases), (columns, column_phases) = (_phases(geometry, axis) for axis in (0, 1))
    empty = jnp.zeros((batch, rows, columns, features), dtype)  # a phase that no tap reads
    interleaved = []
    for row_taps in row_phases:
        phases = []
        for column_taps in column_phases:
            blocks = [
                _shift(shares[:, :, :, i, j], (row, column), (rows, columns))
                for (i, row), (j, column) in itertools.product(row_taps, column_taps)
            ]
            phases.append(reduce(lax.add, blocks) if blocks else empty)
        interleaved.append(jnp.stack(phases, axis=3))
    # Phases stacked next to the axis that they interleave need no transpose.
    image = jnp.stack(interleaved, axis=2)
    (height, width), (row_stride, column_stride) = geometry.image, geometry.strides
    image = image.reshape(batch, rows * row_stride, columns * column_stride, features)
    return image[:, :height, :width]


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


def _contract(geometry, dtype, a, b, axes) -> jax.Array:
    """The matrix product of `a` and `b` over `axes`, in the wider of their dtypes and `dtype`."""
    # NumPy's promotion: JAX's is an error under `jax_numpy_dtype_promotion='strict'`.
    wide = np.promote_types(a.dtype, b.dtype)
    product = lax.dot_general(
        a.astype(wide),
        b.astype(wide),
        (axes, ((), ())),
        precision=geometry.precision,
        preferred_element_type=np.promote_types(wide, dtype),
    )
    return product.astype(dtype)


def _patches(geometry: _Geometry, image: jax.Array) -> jax.Array:
    """`[batch, h, w, in]` -> `[batch, oh, ow, kh * kw * in]`, what each output pixel reads."""
    (batch, _, _, features), (rows, columns) = image.shape, geometry.output()
    if rows == 0 or columns == 0:
        return jnp.zeros((batch, rows, columns, features * math.prod(geometry.kernel)), image.dtype)
    image = pad(image, geometry.padding)
    (row_stride, column_stride), (row_step, column_step) = geometry.strides, geometry.dilation
    views = []
    for i, j in itertools.product(*map(range, geometry.kernel)):
        top, left = i * row_step, j * column_step
        stop = top + (rows - 1) * row_stride + 1, left + (columns - 1) * column_stride + 1
        view = lax.slice(
            image, (0, top, left, 0), (batch, *stop, features), (1, *geometry.strides, 1)
        )
        views.append(view)
    return jnp.concatenate(views, axis=3)


def _phases(geometry: _Geometry, axis: int) -> tuple[int, list[list[tuple[int, int]]]]:
    """The pixels in each phase of an image axis, and for each phase its (tap, first output) pairs.

    At that tap, image pixel `stride * m + phase` is read by output pixel `first output + m`.
    """
    stride, step, low = geometry.strides[axis], geometry.dilation[axis], geometry.padding[axis][0]
    phases = []
    for phase in range(stride):
        reach = [(tap, phase + low - tap * step) for tap in range(geometry.kernel[axis])]
        phases.append([(tap, first // stride) for tap, first in reach if first % stride == 0])
    return -(-geometry.image[axis] // stride), phases


def _shift(block: jax.Array, starts: Pair, sizes: Pair) -> jax.Array:
    """`block[:, start : start + size]` along both image axes, with zeros outside the block."""
    ends = zip(starts, sizes, block.shape[1:3], strict=True)
    return pad(block, [(-start, start + size - extent) for start, size, extent in ends])


def pad(image: jax.Array, pads: Sequence[Pair], value: float = 0.0) -> jax.Array:
    """Pads both image axes; a negative pad removes pixels."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    return lax.pad(image, jnp.array(value, image.dtype), config)
