"""Tasks of unequal size as one meta-batch: padded, masked, with the results of the unpadded ones.

Padding is left out by selection, never by arithmetic: whatever it holds, NaN included, reaches
neither a loss nor a gradient of any order. Batch norm is the exception that nothing here can mend:
what normalises over a batch sees the padding, so pad no batches for such a network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax.tasks import Examples, Task, check_integers, check_leading_axis

ExampleLoss: TypeAlias = Callable[[Any, Examples], jax.Array]  # (params, examples) -> [batch]


class Masked(NamedTuple):
    """Examples of which some are padding; a batch to a loss made by `masked_mean`."""

    examples: Examples  # [..., batch, ...]
    mask: jax.Array | np.ndarray  # [..., batch] bool, true for the real ones


def masked_mean(example_loss: ExampleLoss) -> Callable[[Any, Any], jax.Array]:
    """Makes a `loss_fn` of a loss per example: its mean over the examples that are not padding.

    Of a batch that is not `Masked` it is the mean over all; of one that is all padding it is 0.

    Args:
      example_loss: `(params, examples) -> [batch]`. Where the mask is false it is given a real
        example of the same batch, so that its derivatives are as finite there as elsewhere.

    Raises:
      ValueError: at tracing, if the loss is not one number per example.
    """

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        examples, mask = batch if isinstance(batch, Masked) else (batch, None)
        size = check_leading_axis(examples if mask is None else batch, "batch", "a batch")
        losses = example_loss(params, examples if mask is None else _without_padding(batch))
        if jnp.shape(losses) != (size,):
            raise ValueError(
                f"a loss per example gives [{size}] numbers for {size} examples, but gave shape "
                f"{jnp.shape(losses)}: do not take the mean over the batch, masked_mean does."
            )
        if mask is None:
            return jnp.mean(losses)
        count = jnp.maximum(jnp.sum(mask), 1).astype(losses.dtype)
        return jnp.sum(jnp.where(mask, losses, 0)) / count

    return loss_fn


def _without_padding(batch: Masked) -> Examples:
    """The examples, with the first real one in the place of padding; zeros if there is none.

    To leave out a loss is not enough: the derivative of what is left out is multiplied by zero, and
    zero times NaN is NaN.
    """
    some = jnp.any(batch.mask)
    index = jnp.where(batch.mask, jnp.arange(batch.mask.shape[0]), jnp.argmax(batch.mask))

    def replace(leaf):
        leaf = jnp.asarray(leaf)[index]
        return jnp.where(some, leaf, 0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(replace, batch.examples)


def unless_empty(step: Callable) -> Callable:
    """A scan's `step(carry, batch, *more) -> (carry, out)` that batches all of padding skip.

    They leave the carry as it was, and `out` is zero. It is a `cond`, not a `where`: tasks that run
    one after another save the work, and a derivative taken inside it never meets the branch that
    was not taken. Batches that are not `Masked` cost nothing.
    """

    def step_or_skip(carry, batch, *more):
        if not isinstance(batch, Masked):
            return step(carry, batch, *more)
        _, out = jax.eval_shape(step, carry, batch, *more)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)
        skip = lambda carry, *_: (carry, zero)
        return jax.lax.cond(jnp.any(batch.mask), step, skip, carry, batch, *more)

    return step_or_skip


def stack_batches(batches: Sequence[Examples], *, batch: int | None = None) -> Masked:
    """One task's mini-batches of unequal size, `[batch, ...]` each, as `Masked` `[steps, batch]`.

    Args:
      batches: at least one, of the same structure; NumPy or JAX arrays, outside `jit`.
      batch: examples to pad to; by default the largest number. Give it, to compile once.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("stack_batches needs at least one mini-batch, got none.")
    return _stack([_masked(b, ("batch",)) for b in batches], ("batch",), (batch,), "mini-batches")


def stack_tasks(
    tasks: Sequence[Task],
    *,
    steps: int | None = None,
    batch: int | None = None,
    query: int | None = None,
) -> Task:
    """Tasks of unequal size as one meta-batch, its support and query sets `Masked`.

    Steps are padded at the front, so that every task's last inner step is its last, and examples at
    the end, both with copies of real ones. A step of nothing but padding moves neither parameters
    nor the inner optimiser's state, and its loss is 0.

    Args:
      tasks: at least one, of the same structure, support `[steps, batch, ...]`, or `Masked`
        already; NumPy or JAX arrays, outside `jit`.
      steps, batch, query: sizes to pad to; by default the largest of each. Every new size is a new
        program: give them, to compile once.

    Returns:
      The task, with NumPy leaves: support `[tasks, steps, batch, ...]`, query `[tasks, query, ...]`
      if there is one, and weights, 1 where a task has none, if any has.

    Raises:
      TypeError: for what is not a `Task`.
      ValueError: for no tasks or no examples, tasks of different structures, shapes beyond the
        sizes or dtypes, or sizes that are too small.
    """
    tasks = list(tasks)
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"stack_tasks takes Task(support, query), got {type(task).__name__}.")
    if not tasks:
        raise ValueError("stack_tasks needs at least one task, got none.")
    axes = ("steps", "batch")
    support = _stack([_masked(t.support, axes) for t in tasks], axes, (steps, batch), "supports")
    queries = None
    if any(task.query is not None for task in tasks):
        axes = ("query",)
        queries = _stack([_masked(t.query, axes) for t in tasks], axes, (query,), "query sets")
    weights = None
    if any(task.weight is not None for task in tasks):
        each = [1.0 if task.weight is None else task.weight for task in tasks]
        weights = np.asarray(each, jnp.result_type(float))
    return Task(support, queries, weights)


def _masked(examples: Any, axes: tuple[str, ...]) -> Masked:
    """Host arrays whose leaves are all led by `axes`, with the mask that they have, or all true."""
    what = "a query set" if axes == ("query",) else "a task's support set"
    if examples is None:
        raise ValueError("some tasks have a query set and some have none: give one to all.")
    for leaf in jax.tree.leaves(examples):
        if isinstance(leaf, jax.core.Tracer):
            raise TypeError("tasks are stacked outside jit: their sizes are not known inside.")
        if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
            raise TypeError(f"{what} has random keys, which NumPy cannot hold: give key data.")
    examples = jax.tree.map(np.asarray, examples)
    sizes = []
    for depth, axis in enumerate(axes):
        inner = jax.tree.map(lambda leaf, d=depth: np.empty(leaf.shape[d:], bool), examples)
        sizes.append(check_leading_axis(inner, axis, what))
    if isinstance(examples, Masked):
        if examples.mask.shape != tuple(sizes) or examples.mask.dtype != bool:
            raise ValueError(
                f"a mask is bool {list(axes)}, here {sizes}, but {what} has one of "
                f"{examples.mask.dtype} {list(examples.mask.shape)}."
            )
        return examples
    return Masked(examples, np.ones(sizes, bool))


def _stack(parts: list[Masked], axes: tuple[str, ...], sizes: tuple, what: str) -> Masked:
    """Pads every part to the sizes of its axes, the largest where None, and stacks them."""
    check_integers(**{a: s for a, s in zip(axes, sizes, strict=True) if s is not None})
    found = np.array([part.mask.shape for part in parts]).max(0).tolist()
    full = [least if size is None else size for size, least in zip(sizes, found, strict=True)]
    for axis, size, least in zip(axes, full, found, strict=True):
        if size < least:
            raise ValueError(f"{axis}={size} is too small: the largest of the {what} has {least}.")
    padded = [_padded(part, full) for part in parts]
    kinds = [jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), part) for part in padded]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"the {what} differ in more than their sizes: number {index}, padded, is "
                f"{kind.examples}, the first {kinds[0].examples}."
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded)


def _padded(part: Masked, sizes: list[int]) -> Masked:
    """Copies of the last example after the last axis' end, of the first step before the first."""
    real = part.mask.shape
    last = np.minimum(np.arange(sizes[-1]), real[-1] - 1)
    mask = part.mask[..., last] & (np.arange(sizes[-1]) < real[-1])
    if len(sizes) == 1:
        return Masked(jax.tree.map(lambda leaf: leaf[last], part.examples), mask)
    late = np.arange(sizes[0]) - (sizes[0] - real[0])
    first = np.maximum(late, 0)
    examples = jax.tree.map(lambda leaf: leaf[first][:, last], part.examples)
    return Masked(examples, mask[first] & (late >= 0)[:, None])
