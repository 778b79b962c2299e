"""What a task is: a support set in mini-batches, and a query set.

A task τ drawn from p(τ) reaches the algorithm as arrays alone. Nothing here samples for the inner
loop: it scans over the mini-batches that it is given, so "with or without replacement" is a fact
about tasks, not about the algorithm.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Key: TypeAlias = jax.Array
Examples: TypeAlias = Any  # a pytree whose leaves are led by [examples]
Batches: TypeAlias = Any  # a pytree whose leaves are led by [steps, batch]


class Batch(NamedTuple):
    """Inputs and targets: what the library's own tasks are made of. Your own may be any pytree."""

    inputs: Any  # [batch, ...]
    targets: Any  # [batch, ...]


class Task(NamedTuple):
    """One task; or a meta-batch of them, every leaf led by `[tasks]` as well.

    `query` is whatever the loss accepts as a batch; Reptile itself needs none. `weight` is the
    task's share in the meta-gradient's weighted mean; without it all tasks count alike, and a task
    whose weight is not finite and positive counts for nothing.
    """

    support: Batches  # [steps, batch, ...]
    query: Examples = None  # [query, ...]
    weight: Any = None  # []


@runtime_checkable
class TaskDistribution(Protocol):
    """p(τ): a pytree, so that its arrays are arguments of the compiled program."""

    def sample(self, key: Key) -> Task:
        """Draws one task. Pure: the same key gives the same task."""
        ...


class Draws(NamedTuple):
    """A meta-batch not yet drawn: one task per key.

    Each task is drawn where it is used, so a large meta-batch never stands in memory whole.
    """

    distribution: TaskDistribution
    keys: Key  # [tasks]


def drawn(distribution: TaskDistribution, key: Key) -> Task:
    """The task of a key; a TypeError, at tracing, if the distribution gives something else."""
    task = distribution.sample(key)
    if not isinstance(task, Task):
        raise TypeError(f"sample(key) returns a Task, not a {type(task).__name__}.")
    return task


def minibatches(
    key: Key, examples: Examples, *, steps: int, batch_size: int, replace: bool = False
) -> Batches:
    """Draws the inner loop's mini-batches from one task's support examples.

    By default examples are shuffled and cycled through: consecutive batches, a new shuffle at the
    end of each pass, and a batch may straddle two passes. This is the sampler of the paper's
    released code (Nichol et al. 2018); it is not class-balanced. Where a batch holds whole passes
    the examples stay in their order.

    Args:
      key: consumed.
      examples: a pytree, leaves `[examples, ...]`.
      steps: number of mini-batches, at least 1.
      batch_size: examples in each, at least 1.
      replace: draw every batch afresh, without replacement inside the batch.

    Returns:
      The pytree with leaves `[steps, batch_size, ...]`.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for sizes below 1, for no examples, for leaves that disagree on their number, and
        with `replace` for batches larger than the number of examples.
    """
    num_examples = check_leading_axis(examples, "examples", "a task's support set")
    order = minibatch_order(key, num_examples, steps=steps, batch_size=batch_size, replace=replace)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], examples)


def minibatch_order(
    key: Key, num_examples: int, *, steps: int, batch_size: int, replace: bool = False
) -> jax.Array:
    """The indices behind `minibatches`: `[steps, batch_size]` integers below `num_examples`."""
    check_key(key)
    check_integers(num_examples=num_examples, steps=steps, batch_size=batch_size)
    if replace and batch_size > num_examples:
        raise ValueError(
            f"a batch of {batch_size} cannot be drawn without repetition from {num_examples} "
            "examples: lower batch_size or give more examples."
        )
    if batch_size % num_examples == 0:  # whole passes: a shuffle would change no batch's contents
        return jnp.tile(jnp.arange(num_examples), (steps, batch_size // num_examples))
    passes = steps if replace else -(-steps * batch_size // num_examples)
    shuffles = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(
        jax.random.split(key, passes)
    )
    if replace:
        return shuffles[:, :batch_size]
    return shuffles.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def shuffles(words: jax.Array) -> jax.Array:
    """Uniform permutations `[shuffles, size]` by sorting random words `[shuffles, size]` uint32.

    An index stands in the low bits of its word, so that words are sorted alone: on a CPU many times
    faster than `jax.random.permutation`, which sorts pairs. Words alike in all other bits keep
    their order, which makes i come before j with probability 1/2 + size / 2^32 at most.
    """
    size = words.shape[-1]
    low = (1 << (size - 1).bit_length()) - 1
    mask, index = jnp.uint32(low), jnp.arange(size, dtype=jnp.uint32)[None]
    return (jnp.sort((words & ~mask) | index, stable=False) & mask).astype(jnp.int32)


def check_integers(least: int = 1, **values: Any) -> None:
    """Raises for a value that is not an integer of at least `least` that fits in 32 bits.

    Raises:
      TypeError: for what is not an integer; True and False are not.
      ValueError: for an integer out of range.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} is an integer, got {value!r}.")
        if value < least:
            raise ValueError(f"{name} is at least {least}, got {value}.")
        if value >= 2**31:
            raise ValueError(f"{name} is below 2**31, got {value}.")


def check_key(key: Any, shape: tuple[int, ...] = ()) -> None:
    """Raises a TypeError for what is not a key, new or old, or an array of them of this shape."""
    dtype, found = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_old = dtype == jnp.uint32 and found is not None and len(found) == len(shape) + 1
    if not ((is_new and found == shape) or (is_old and found[:-1] == shape)):
        given = repr(key) if found is None else f"{dtype}{list(found)}"
        wanted = f"keys {list(shape)} are split from" if shape else "a key is made by"
        raise TypeError(f"{wanted} jax.random.key(seed), got {given:.80}.")


def check_distribution(distribution: Any) -> None:
    """Raises a TypeError for what has no `sample(key) -> Task`, or is no pytree of arrays."""
    if isinstance(distribution, type) or not isinstance(distribution, TaskDistribution):
        given = getattr(distribution, "__name__", type(distribution).__name__)
        raise TypeError(f"a task distribution has a method sample(key) -> Task, got {given}.")
    for leaf in jax.tree.leaves(distribution):
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "dtype"):
            what = "" if leaf is distribution else f", and its leaves are arrays, not {leaf!r:.80}"
            raise TypeError(
                f"a task distribution is a pytree{what}: register {type(distribution).__name__}, "
                "with jax.tree_util.register_dataclass for one, its sizes as static fields."
            )


def check_meta_batch(tasks: Task | Key) -> int:
    """The number of tasks in a meta-batch, or a ValueError that says what is wrong with it."""
    num_tasks = check_leading_axis(tasks, "tasks", "the meta-batch")
    if isinstance(tasks, Task):
        support = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks.support
        )
        check_leading_axis(support, "steps", "each task's support set")
        if tasks.weight is not None and jnp.shape(tasks.weight) != (num_tasks,):
            raise ValueError(
                f"weights are one for each task, [{num_tasks}], got "
                f"{list(jnp.shape(tasks.weight))}."
            )
    else:
        check_key(tasks, (num_tasks,))
    return num_tasks


def check_leading_axis(tree: Any, axis: str, what: str) -> int:
    """The leaves' common first axis, at least 1; else a ValueError that says what is wrong."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "itself"
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "shape"):
            raise TypeError(f"the leaves of {what} are arrays, but {name} is {leaf!r:.80}.")
        sizes[name] = jnp.shape(leaf)[:1]
    if not sizes:
        raise ValueError(f"{what} holds no arrays; every leaf needs a leading axis [{axis}].")
    if len(set(sizes.values())) > 1 or () in sizes.values():
        found = ", ".join(
            f"{path}: {size[0] if size else 'a scalar'}" for path, size in sizes.items()
        )
        raise ValueError(
            f"the leaves of {what} disagree on their leading axis [{axis}]: {found}. Give every "
            "leaf the same one."
        )
    (size,) = next(iter(sizes.values()))
    if size < 1:
        raise ValueError(
            f"{what} has a leading axis [{axis}] of 0: give at least one of its {axis}."
        )
    return size
