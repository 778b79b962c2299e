"""What the convolution and the layers accept. Each check raises once, with what was given."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax

from reptile_jax._values import check_integers

Pair: TypeAlias = tuple[int, ...]  # (height, width)

# Images [batch, height, width, features], kernels [height, width, in, out]: Flax's layout, in which
# patches are concatenated along the contiguous axis.
LAYOUT = ("NHWC", "HWIO", "NHWC")


def check_conv_supported(
    lhs, rhs, lhs_dilation, dimension_numbers, batch_group_count, out_sharding
) -> None:
    """Raises a NotImplementedError for a convolution that only lax supports."""
    problem = None
    if lhs.ndim != 4 or rhs.ndim != 4:
        problem = (
            "only two-dimensional convolutions: images [batch, height, width, features] and a "
            f"kernel [height, width, features, out features]; got shapes {lhs.shape}, {rhs.shape}"
        )
    elif not _is_nhwc(lhs.shape, rhs.shape, dimension_numbers):
        problem = (
            f"only dimension_numbers={LAYOUT}, got {dimension_numbers} (None is lax's NCHW): "
            "transpose the images and the kernel"
        )
    elif lhs_dilation is not None and check_pair("lhs_dilation", lhs_dilation) != (1, 1):
        problem = f"lhs_dilation (a transposed convolution) must be 1, got {lhs_dilation}"
    elif not isinstance(batch_group_count, int) or batch_group_count != 1:
        problem = f"batch_group_count must be 1, got {batch_group_count}"
    elif out_sharding is not None:
        problem = f"out_sharding must be None, got {out_sharding}"
    if problem:
        raise NotImplementedError(f"{problem}. For anything else use lax.conv_general_dilated.")


def _is_nhwc(images: tuple, kernel: tuple, dimension_numbers: Any) -> bool:
    try:
        numbers = lax.conv_dimension_numbers(images, kernel, dimension_numbers)
    except (TypeError, ValueError):  # lax does not know it either
        return False
    return numbers == lax.conv_dimension_numbers(images, kernel, LAYOUT)


def check_conv_dtypes(lhs, rhs, preferred) -> None:
    """Raises a TypeError unless all dtypes are floating and those of the arrays are the same."""
    try:
        is_floating = preferred is None or jnp.issubdtype(jnp.dtype(preferred), jnp.floating)
    except (TypeError, ValueError):
        is_floating = False
    problem = None
    if not is_floating:
        problem = f"preferred_element_type is a floating dtype, got {preferred!r:.80}"
    elif lhs.dtype != rhs.dtype or not jnp.issubdtype(lhs.dtype, jnp.floating):
        problem = f"need one floating dtype, got {lhs.dtype} images and {rhs.dtype} kernel"
    if problem:
        raise TypeError(problem)


def check_conv_shapes(images: tuple, kernel: tuple, groups: int, padding: tuple) -> None:
    """Raises a ValueError for shapes that do not fit together, or do not fit the padding."""
    features = images[3]
    problem = None
    if 0 in kernel or features == 0:
        problem = f"images and kernels need at least one feature, got {images} and {kernel}"
    elif kernel[2] * groups != features or kernel[3] % groups:
        problem = (
            f"images with {features} features do not fit a kernel of shape {kernel} in {groups} "
            "groups: features must be groups times the kernel's third axis, and groups must divide "
            "the fourth"
        )
    elif any(
        min(low, 0) + min(high, 0) + extent < 0
        for extent, (low, high) in zip(images[1:3], padding, strict=True)
    ):
        problem = f"padding {padding} removes more pixels than images of shape {images} have"
    if problem:
        raise ValueError(problem)


def check_pair(name: str, value: Any) -> Pair:
    """The value as a tuple of two positive integers, or an error with its name."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} is two integers, got {value!r:.80}")
    sizes = {f"{name}[{axis}]": size for axis, size in enumerate(value)}
    return tuple(check_integers(**sizes))


def check_padding(padding: Any) -> None:
    """Raises a ValueError unless it is the name of a padding or two pairs of integers."""
    names = ("SAME", "SAME_LOWER", "VALID")
    if isinstance(padding, str) and padding.upper() in names:
        return
    are_pairs = isinstance(padding, Sequence) and len(padding) == 2
    if not are_pairs or not all(
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(isinstance(extent, int | np.integer) for extent in pair)
        for pair in padding
    ):
        raise ValueError(f"padding is one of {names} or two pairs of integers, got {padding!r:.80}")
