"""Tasks of unequal size as one meta-batch: padding and masks do not change the results.

Padding is removed by selection, never by arithmetic: its values, even NaN, reach neither a loss nor
a gradient of any order. Do not pad tasks for a network with batch norm: the padding would enter its
statistics.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._types import ExampleLoss, Examples, LossFn, Params, Repeated, Task
from reptile_jax._values import check_integers, check_leading_axis, kind


class Masked(NamedTuple):
    """Examples of which some are padding: a batch for a loss made by `masked_mean`."""

    examples: Examples  # [..., batch, ...]
    mask: jax.Array | np.ndarray  # [..., batch] bool, true for the real ones


def masked_mean(example_loss: ExampleLoss) -> LossFn:
    """Makes a `loss_fn` of a loss per example: its mean over the examples that are not padding.

    For a batch that is not `Masked` it is the mean over all examples; for one of only padding it is
    0.

    Args:
      example_loss: `(params, examples) -> [batch]`. Where the mask is false it gets a real example
        of the same batch, so its derivatives are finite there too.

    Raises:
      ValueError: at tracing, if the loss is not one number per example.
    """

    def loss_fn(params: Params, batch: Any) -> jax.Array:
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
    """The examples, with the first real one in place of padding; zeros if there is none.

    Removing a loss is not enough: its derivative is multiplied by zero, and zero times NaN is NaN.
    """
    some = jnp.any(batch.mask)
    index = jnp.where(batch.mask, jnp.arange(batch.mask.shape[0]), jnp.argmax(batch.mask))

    def replace(leaf):
        leaf = jnp.asarray(leaf)[index]
        return jnp.where(some, leaf, 0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(replace, batch.examples)


def unless_empty(step: Callable) -> Callable:
    """A scan's `step(carry, batch, *more) -> (carry, out)` that skips batches of only padding.

    A skipped batch leaves the carry unchanged, and its `out` is zero. This is a `cond`, not a
    `where`: tasks that run one after another save the work, and a derivative inside it never
    evaluates the other branch. Batches that are not `Masked` cost nothing.
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
    """Stacks mini-batches of unequal size, `[batch, ...]` each, as `Masked` `[steps, batch, ...]`.

    Args:
      batches: one task's, at least one, of the same structure; NumPy or JAX arrays, outside `jit`.
      batch: examples to pad to; by default the largest number. Set it to compile only once.

    Raises:
      ValueError: for no mini-batches or examples, different structures, or a `batch` too small.
    """
    sizes = _integers(batch=batch)
    batches = [_masked(b, ("batch",)) for b in batches]
    if not batches:
        raise ValueError("stack_batches needs at least one mini-batch, got none.")
    return _stack(batches, ("batch",), sizes, "mini-batches")


def stack_tasks(
    tasks: Sequence[Task],
    *,
    steps: int | None = None,
    batch: int | None = None,
    query: int | None = None,
) -> Task:
    """Stacks tasks of unequal size as one meta-batch; its support and query sets are `Masked`.

    Steps are padded at the front, so the last inner steps of all tasks coincide, and examples at
    the end, both with copies of real ones. A step of only padding changes neither the parameters
    nor the inner optimiser's state, and its loss is 0.

    Args:
      tasks: at least one, of the same structure, support `[steps, batch, ...]`, `Masked` or not, or
        `Repeated`; NumPy or JAX arrays, outside `jit`.
      steps, batch, query: sizes to pad to; by default the largest of each. Every new size compiles
        a new program: set them to compile only once.

    Returns:
      The task, with NumPy leaves: support `[tasks, steps, batch, ...]`, query `[tasks, query, ...]`
      if there is one, and weights if any task has one; the others weigh 1. Supports that are all
      `Repeated`, for equally many steps, stay so; otherwise there is a copy for each step.

    Raises:
      TypeError: for what is not a `Task`.
      ValueError: for no tasks or no examples, for tasks that differ in structure, dtypes or in
        shapes beyond these sizes, and for sizes that are too small.
    """
    tasks, (steps, batch, query) = list(tasks), _integers(steps=steps, batch=batch, query=query)
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"stack_tasks takes Task(support, query), got {type(task).__name__}.")
    problem, has_query = None, {task.query is not None for task in tasks}
    if not tasks:
        problem = "stack_tasks needs at least one task, got none."
    elif len(has_query) > 1:
        problem = "some tasks have a query set and some have none: give one to all."
    if problem:
        raise ValueError(problem)
    support = _stack_supports([task.support for task in tasks], steps, batch)
    queries = None
    if True in has_query:
        axes = ("query",)
        queries = _stack([_masked(t.query, axes) for t in tasks], axes, (query,), "query sets")
    weights = None
    if any(task.weight is not None for task in tasks):
        each = [1.0 if task.weight is None else task.weight for task in tasks]
        weights = np.asarray(each, jnp.result_type(float))
    return Task(support, queries, weights)


def _stack_supports(supports: list, steps: int | None, batch: int | None) -> Masked | Repeated:
    """Supports `[tasks, steps, batch, ...]`; `Repeated` if all are, for equally many steps."""
    repeated = [s for s in supports if isinstance(s, Repeated)]
    lengths = {s.steps for s in repeated} | ({steps} - {None})
    if len(repeated) == len(supports) and len(lengths) == 1:
        parts = [_masked(s.examples, ("batch",)) for s in repeated]
        return Repeated(_stack(parts, ("batch",), (batch,), "supports"), repeated[0].steps)
    axes = ("steps", "batch")
    return _stack([_masked(s, axes) for s in supports], axes, (steps, batch), "supports")


def _masked(examples: Any, axes: tuple[str, ...]) -> Masked:
    """Host arrays with leaves led by `axes`, and their mask, which is true if they have none."""
    what = "a query set" if axes == ("query",) else "a task's support set"
    problem = None
    for leaf in jax.tree.leaves(examples):
        if isinstance(leaf, jax.core.Tracer):
            problem = "tasks are stacked outside jit: their sizes are not known inside."
        elif jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
            problem = f"{what} has random keys, which NumPy cannot store: use jax.random.key_data."
    if problem:
        raise TypeError(problem)
    examples = jax.tree.map(np.asarray, examples)
    if isinstance(examples, Repeated):
        copy = lambda leaf, steps=examples.steps: np.broadcast_to(leaf, (steps, *leaf.shape))
        examples = jax.tree.map(copy, examples.examples)
    sizes = []
    for depth, axis in enumerate(axes):
        inner = jax.tree.map(lambda leaf, d=depth: np.empty(leaf.shape[d:], bool), examples)
        sizes.append(check_leading_axis(inner, axis, what))
    if isinstance(examples, Masked):
        if examples.mask.shape != tuple(sizes) or examples.mask.dtype != bool:
            raise ValueError(
                f"a mask is bool {list(axes)}, here {sizes}, but that of {what} is "
                f"{examples.mask.dtype} {list(examples.mask.shape)}."
            )
        return examples
    return Masked(examples, np.ones(sizes, bool))


def _integers(**sizes: int | None) -> tuple[int | None, ...]:
    """The sizes as Python's integers, or None where they are."""
    known = {name: size for name, size in sizes.items() if size is not None}
    integers = dict(zip(known, check_integers(**known), strict=True))
    return tuple(integers.get(name) for name in sizes)


def _stack(parts: list[Masked], axes: tuple[str, ...], sizes: tuple, what: str) -> Masked:
    """Pads every part to the sizes of its axes, the largest where None, and stacks them."""
    found = np.array([part.mask.shape for part in parts]).max(0).tolist()
    full = [least if size is None else size for size, least in zip(sizes, found, strict=True)]
    small = [name for name, size, least in zip(axes, full, found, strict=True) if size < least]
    kinds = [kind(part.examples, len(axes)) for part in parts]
    other = [index for index, each in enumerate(kinds) if each != kinds[0]]
    problem = None
    if small:
        at = axes.index(small[0])
        problem = f"{small[0]}={full[at]} is too small: the largest of the {what} has {found[at]}."
    elif other:
        problem = (
            f"the {what} differ in more than their sizes: an example of number {other[0]} is "
            f"{kinds[other[0]]!s}, one of the first {kinds[0]!s}."
        )
    if problem:
        raise ValueError(problem)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(_padded(part, full) for part in parts))


def _padded(part: Masked, sizes: list[int]) -> Masked:
    """Pads examples at the end with the last one, and steps at the front with the first one."""
    real = part.mask.shape
    last = np.minimum(np.arange(sizes[-1]), real[-1] - 1)
    mask = part.mask[..., last] & (np.arange(sizes[-1]) < real[-1])
    if len(sizes) == 1:
        return Masked(jax.tree.map(lambda leaf: leaf[last], part.examples), mask)
    late = np.arange(sizes[0]) - (sizes[0] - real[0])
    first = np.maximum(late, 0)
    examples = jax.tree.map(lambda leaf: leaf[first][:, last], part.examples)
    return Masked(examples, mask[first] & (late >= 0)[:, None])
