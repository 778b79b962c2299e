"""A state as named leaves: what is written, compared and put on devices, leaf by leaf."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, in the tree's order."""
    leaves = {}
    for keys, leaf in jax.tree.leaves_with_path(tree):
        path = jax.tree_util.keystr(keys).removeprefix(".")
        while path in leaves:  # nodes of the user's own may name two alike
            path += "'"
        leaves[path] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return leaves


def described(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{path} is {found.get(path, 'missing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


def numbered(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What Orbax stores, by the number of the leaf: keys as words, and no empty array."""
    return {str(n): _words(leaf) for n, leaf in enumerate(leaves.values()) if leaf.size}


def size_of(leaves: Mapping[str, Any]) -> int:
    return sum(array.size * array.dtype.itemsize for array in numbered(leaves).values())


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
    """An array, or its shape, with random keys as the words that they consist of."""
    if not isinstance(leaf, jax.Array):
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.eval_shape(jax.random.key_data, shape) if _is_key(leaf) else leaf
    several = jax.process_count() > 1  # Orbax takes arrays of all processes, or of none
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf.addressable_data(0) if several else leaf)
    return np.asarray(leaf) if several else leaf


def as_leaf(words: jax.Array | None, like: Any) -> jax.Array:
    """The reverse of `_words`; None is an empty array."""
    if words is None:
        shape = _words(like)
        words = jnp.zeros(shape.shape, shape.dtype)
    if not _is_key(like):
        return words
    kind = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` may be a shape
    return jax.random.wrap_key_data(words, impl=kind)


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and where to put a leaf: on this machine's devices, not the writer's."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(leaf, "sharding", None)
    of_this_process = sharding is not None and sharding.is_fully_addressable
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding if of_this_process else here
    )


def _is_divided_over_processes(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_addressable:
        return False
    return not sharding.is_fully_replicated


def of_all_processes(leaf: Any) -> Any:
    """On this host, what is divided over processes; all of them call this."""
    if not _is_divided_over_processes(leaf):
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def on_this_host(leaf: Any) -> Any:
    """The shape of what is divided over processes, to be read into this host's memory."""
    if not _is_divided_over_processes(leaf):
        return leaf
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)


def divided_as(leaf: jax.Array, like: Any) -> jax.Array:
    if not _is_divided_over_processes(like):
        return leaf
    return jax.make_array_from_callback(leaf.shape, like.sharding, np.asarray(leaf).__getitem__)


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all leaves are the same, bit for bit."""
    bits = lambda leaf: np.asarray(_words(leaf)).tobytes()
    return all(bits(one[path]) == bits(leaf) for path, leaf in other.items())
