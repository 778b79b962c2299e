"""Checks of single values: keys, integers, numbers, ranges, arrays and trees of them.

The functions of the algorithm, the tasks, the networks and the data sets share them. Each says what
was given, what was expected, and what to do.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Kind(NamedTuple):
    """What trees of one kind have in common.

    Kinds can be compared and read. A tree may be of a class that cannot: its `==` may be that of
    objects, or of arrays, and its `repr` an address.
    """

    structure: Any
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]

    def __str__(self) -> str:
        leaves = [f"{d}{list(s)}" for s, d in zip(self.shapes, self.dtypes, strict=True)]
        tree = jax.tree.unflatten(self.structure, leaves)
        if " at 0x" not in (text := str(tree)):
            return text
        named = jax.tree_util.tree_leaves_with_path(tree)
        return ", ".join(f"{jax.tree_util.keystr(path)}: {leaf}" for path, leaf in named)


def kind(tree: Any, axes: int = 0) -> Kind:
    """The kind of a tree, whose leaves are led by so many `axes` that do not count."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = [np.shape(leaf)[axes:] for leaf in leaves]
    return Kind(structure, shapes, [_dtype(leaf) for leaf in leaves])


def _dtype(leaf: Any) -> Any:
    """JAX's dtype for what is an array or a number."""
    try:
        return jax.typeof(leaf).dtype
    except TypeError:
        return getattr(leaf, "dtype", type(leaf))


def same_shapes(tree: Any, other: Any) -> bool:
    """Whether two trees have the same structure and shapes, whatever the dtypes."""
    return kind(tree)[:2] == kind(other)[:2]


def check_same_shape(outputs: Any, targets: Any) -> None:
    """Raises a ValueError unless both have one shape: else their difference would have another."""
    given, expected = np.shape(outputs), np.shape(targets)
    if given != expected:
        raise ValueError(
            f"a network's outputs have the shape of the targets, but they are {[*given]} and the "
            f"targets {[*expected]}: reshape one of the two."
        )


def check_key(key: Any) -> None:
    """Raises a TypeError for what is not a key, new or old."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_new and shape == ()) and not (dtype == jnp.uint32 and len(shape or ()) == 1):
        given = repr(key) if shape is None else f"{dtype}{list(shape)}"
        raise TypeError(f"a key is made by jax.random.key(seed), got {given:.80}.")


def check_integers(least: int = 1, **values: Any) -> list[int]:
    """The values as Python's integers, each at least `least` and within 32 bits.

    NumPy's and JAX's integers are as good, but are no part of a compiled program's name.

    Raises:
      TypeError: for what is not an integer; True and False are not.
      ValueError: for an integer out of range.
    """
    integers = []
    for name, value in values.items():
        is_array = isinstance(value, np.ndarray | jax.Array) and value.shape == ()
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        is_integer |= is_array and jnp.issubdtype(value.dtype, jnp.integer)
        if not is_integer or isinstance(value, jax.core.Tracer):
            raise TypeError(f"{name} is an integer, got {value!r:.80}.")
        integers.append(int(value))
        if not least <= integers[-1] < 2**31:
            bound = f"at least {least}" if value < least else "below 2**31"
            raise ValueError(f"{name} is {bound}, got {value}.")
    return integers


def check_number(name: str, value: Any, least: float, largest: float = math.inf) -> float:
    """The value as Python's number, within bounds; a ValueError for what is not, or no number."""
    if not _is_number(value) or not least <= value <= largest:
        bounds = f"between {least:g} and {largest:g}"
        if largest == math.inf:
            bounds = f"of at least {least:g}"
        raise ValueError(f"{name} is a number {bounds}, got {value!r:.80}.")
    return float(value)


def check_range(
    name: str, ends: Any, least: float = -1e9, largest: float = 1e9
) -> tuple[float, float]:
    """Two numbers in order, lowest and highest, within bounds."""
    are_two = isinstance(ends, Sequence) and len(ends) == 2 and all(map(_is_number, ends))
    if not are_two or not least <= ends[0] <= ends[1] <= largest:
        raise ValueError(
            f"{name} is two numbers, (lowest, highest), between {least:g} and {largest:g}, "
            f"got {ends!r:.80}."
        )
    return float(ends[0]), float(ends[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def check_leading_axis(tree: Any, axis: str, what: str) -> int:
    """The leaves' common first axis, at least 1; else a ValueError that says what is wrong."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "itself"
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "shape"):
            raise TypeError(f"the leaves of {what} are arrays, but {name} is {leaf!r:.80}.")
        sizes[name] = jnp.shape(leaf)[:1]
    if len(set(sizes.values())) == 1 and (size := next(iter(sizes.values()))) > (0,):
        return size[0]
    if not sizes:
        problem = f"{what} has no arrays; every leaf needs a leading axis [{axis}]."
    elif set(sizes.values()) == {()}:
        problem = f"{what} has no leading axis [{axis}]: all its leaves are scalars."
    elif set(sizes.values()) == {(0,)}:
        problem = f"{what} has a leading axis [{axis}] of 0: give at least one of its {axis}."
    else:
        found = ", ".join(f"{name}: {n[0] if n else 'a scalar'}" for name, n in sizes.items())
        problem = (
            f"the leaves of {what} disagree on their leading axis [{axis}]: {found}. Give every "
            "leaf the same one."
        )
    raise ValueError(problem)
