"""A convolution and its gradients as matrix products of patches.

Under `vmap` over weights these are batched matrix products.
"""

import itertools
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax.nn._checks import Pair


class Geometry(NamedTuple):
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


def convolve(
    geometry: Geometry, dtype: Any, image: jax.Array, kernel: jax.Array, *, on_cpu: bool
) -> jax.Array:
    """Image `[batch, h, w, in]`, kernel `[kh, kw, in, out]` -> `[batch, oh, ow, out]`."""
    if on_cpu and _is_cheaper_by_rows(geometry, *kernel.shape[2:]):
        columns, rows = _split(geometry)
        taps = _by_rows(kernel)
        shares = _contract(geometry, dtype, _patches(columns, image), taps, ((3,), (0,)))
        return _sum_by_phases(rows, shares)
    taps = kernel.reshape(-1, kernel.shape[-1])
    return _contract(geometry, dtype, _patches(geometry, image), taps, ((3,), (0,)))


def kernel_gradient(
    geometry: Geometry, dtype: Any, image: jax.Array, cotangent: jax.Array, *, on_cpu: bool
) -> jax.Array:
    """Image `[batch, h, w, in]`, cotangent `[batch, oh, ow, out]` -> `[kh, kw, in, out]`."""
    # Recomputed from the image: within one program the compiler shares the forward pass's patches.
    # Both operands are matrices: the compiler transposes those with several contracted axes.
    shape = *geometry.kernel, image.shape[-1], cotangent.shape[-1]
    if by_rows := on_cpu and _is_cheaper_by_rows(geometry, *shape[2:]):
        geometry, rows = _split(geometry)
        cotangent = _patches(rows, cotangent)
    patches = _patches(geometry, image)
    patches = patches.reshape(-1, patches.shape[-1])
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    product = _product_on_cpu if on_cpu else _over_rows
    gradient = product(geometry, dtype, patches, cotangent)
    if by_rows:
        return gradient.reshape(*shape[1:3], shape[0], shape[3]).transpose(2, 0, 1, 3)[::-1]
    return gradient.reshape(shape)


def _over_rows(geometry: Geometry, dtype: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    return _contract(geometry, dtype, a, b, ((0,), (0,)))


def _product_on_cpu(geometry: Geometry, dtype: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    """There a product copies a transposed left operand, so the smaller one goes to the left."""
    if a.shape[1] <= b.shape[1]:
        return _over_rows(geometry, dtype, a, b)
    # Without the barrier the compiler swaps them back, to save the transpose of the result.
    return lax.optimization_barrier(_over_rows(geometry, dtype, b, a)).T


def image_gradient(
    geometry: Geometry, dtype: Any, cotangent: jax.Array, kernel: jax.Array, *, on_cpu: bool
) -> jax.Array:
    """Cotangent `[batch, oh, ow, out]`, kernel `[kh, kw, in, out]` -> `[batch, h, w, in]`.

    One product gives every output pixel's share for each of its taps.
    """
    if on_cpu and _is_cheaper_by_rows(geometry, *kernel.shape[2:]):
        geometry, rows = _split(geometry)
        cotangent, taps = _patches(rows, cotangent), _by_rows(kernel)
    else:
        taps = kernel.reshape(-1, kernel.shape[3])
    shares = _contract(geometry, dtype, cotangent, taps, ((3,), (1,)))
    return (_sum_by_phases if on_cpu else _sum_of_blocks)(geometry, shares)


# By rows: patches along the columns `[batch, h, ow, kw * in]`, and of cotangents along the rows
# `[batch, h, ow, kh * out]`, take the place of whole patches and shares, `kh * kw * in` at a pixel.
# The kernel is a matrix `[kw * in, kh * out]`, with its rows in reverse.


def _is_cheaper_by_rows(geometry: Geometry, features_in: int, features_out: int) -> bool:
    high, wide = geometry.kernel
    if geometry.strides[0] > 1 or 0 in (*geometry.image, *geometry.output()):
        return False  # strides would compute rows that nobody reads
    return high * wide * features_in > wide * features_in + high * features_out


def _split(geometry: Geometry) -> tuple[Geometry, Geometry]:
    """Image to patches along the columns, and output to patches along the image's rows."""
    (high, wide), (row_step, step) = geometry.kernel, geometry.dilation
    (low, end), column_pads = geometry.padding
    columns = geometry._replace(
        kernel=(1, wide),
        strides=(1, geometry.strides[1]),
        dilation=(1, step),
        padding=((0, 0), column_pads),
    )
    reach = (high - 1) * row_step
    rows = geometry._replace(
        image=geometry.output(),
        kernel=(high, 1),
        strides=(1, 1),
        dilation=(row_step, 1),
        padding=((reach - low, reach - end), (0, 0)),
    )
    return columns, rows


def _by_rows(kernel: jax.Array) -> jax.Array:
    high, wide, features_in, features_out = kernel.shape
    return kernel[::-1].transpose(1, 2, 0, 3).reshape(wide * features_in, high * features_out)


# The sums of shares `[batch, oh, ow, kh * kw * in]` at each image pixel, `[batch, h, w, in]`: the
# transpose of `_patches`. A pixel gathers its shares; a scatter into the strided image would go
# element by element. Both ways are equal to the last bit: a CPU copies whole slices, a GPU computes
# each pixel in one kernel.


def _sum_by_phases(geometry: Geometry, shares: jax.Array) -> jax.Array:
    """Image pixels in the same phase (index modulo the stride) are read by the same taps.

    So a phase is a sum of shifted slices.
    """
    shares = _by_taps(geometry, shares)
    batch, features = len(shares), shares.shape[5]
    (rows, row_phases), (columns, column_phases) = (_phases(geometry, axis) for axis in (0, 1))
    empty = jnp.zeros((batch, rows, columns, features), shares.dtype)  # a phase that no tap reads
    interleaved = []
    for row_taps in row_phases:
        phases = []
        for column_taps in column_phases:
            slices = [
                _shift(shares[:, :, :, i, j], (row, column), (rows, columns))
                for (i, row), (j, column) in itertools.product(row_taps, column_taps)
            ]
            phases.append(reduce(lax.add, slices) if slices else empty)
        interleaved.append(jnp.stack(phases, axis=3))
    # Phases stacked next to the axis that they interleave need no transpose.
    image = jnp.stack(interleaved, axis=2)
    (height, width), (row_stride, column_stride) = geometry.image, geometry.strides
    image = image.reshape(batch, rows * row_stride, columns * column_stride, features)
    return image[:, :height, :width]


def _phases(geometry: Geometry, axis: int) -> tuple[int, list[list[tuple[int, int]]]]:
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


def _sum_of_blocks(geometry: Geometry, shares: jax.Array) -> jax.Array:
    """On each axis the taps are folded into `[blocks, stride]`, the padded image `[rows, stride]`.

    Row m is the sum of every block a's shares at output pixel m - a.
    """
    shares = _by_taps(geometry, shares)
    batch, *outputs, _, _, features = shares.shape
    folds = high, wide = _fold(geometry, 0), _fold(geometry, 1)
    pads = (*[(0, 0, 0)] * 3, high.pad_taps, wide.pad_taps, (0, 0, 0))
    shares = lax.pad(shares, jnp.zeros((), shares.dtype), pads)
    strides = row_stride, column_stride = geometry.strides
    split = high.blocks, row_stride, wide.blocks, column_stride
    shares = shares.reshape(batch, *outputs, *split, features)
    rows = jnp.zeros((batch, high.rows, wide.rows, *strides, features), shares.dtype)
    for row, column in itertools.product(range(high.blocks), range(wide.blocks)):
        ends = zip((row, column), outputs, folds, strict=True)
        shifts = [(at, fold.rows - at - extent) for at, extent, fold in ends]
        rows += pad(shares[:, :, :, row, :, column], shifts)
    padded = rows.swapaxes(2, 3)
    padded = padded.reshape(batch, high.rows * row_stride, wide.rows * column_stride, features)
    return pad(padded, [high.unpad, wide.unpad])


def _by_taps(geometry: Geometry, shares: jax.Array) -> jax.Array:
    features = shares.shape[3] // math.prod(geometry.kernel)
    return shares.reshape(*shares.shape[:3], *geometry.kernel, features)


class _Fold(NamedTuple):
    """An axis of the padded image as `[rows, stride]`, its dilated taps as `[blocks, stride]`."""

    rows: int
    blocks: int
    pad_taps: tuple[int, int, int]  # zeros before, after and between the taps
    unpad: Pair


def _fold(geometry: Geometry, axis: int) -> _Fold:
    size, taps, (low, _) = geometry.image[axis], geometry.kernel[axis], geometry.padding[axis]
    stride, dilation = geometry.strides[axis], geometry.dilation[axis]
    reach = (taps - 1) * dilation + 1
    rows, blocks = max(0, -(-(size + low) // stride)), -(-reach // stride)
    pad_taps = (0, blocks * stride - reach, dilation - 1)
    return _Fold(rows, blocks, pad_taps, (-low, size + low - rows * stride))


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


def _patches(geometry: Geometry, image: jax.Array) -> jax.Array:
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


def pad(image: jax.Array, pads: Sequence[Pair], value: float = 0.0) -> jax.Array:
    """Pads the two axes after the batch; a negative pad removes pixels."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in pads), *[(0, 0, 0)] * (image.ndim - 3))
    return lax.pad(image, jnp.array(value, image.dtype), config)
