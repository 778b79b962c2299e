"""How the inner steps go over a support set: mini-batch by mini-batch, or all of it in each.

The functions of the root that take steps use these scans, so that every kind of support set works
in all of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from reptile_jax._types import Batches, Examples, Repeated, TaskState
from reptile_jax._values import check_integers
from reptile_jax.tasks.padding import unless_empty


def repeat(examples: Examples, steps: int) -> Repeated:
    """A support set of full-batch steps: `steps` times the same examples, without a copy per step.

    The result is that of `steps` copies, to rounding. Every step sees the same arrays: a key for
    dropout belongs into the model state, or into mini-batches.

    Args:
      examples: a pytree, leaves `[batch, ...]`, `Masked` or not; in a meta-batch
        `[tasks, batch, ...]`.
      steps: inner steps, at least 1. It is static: another number is another program.
    """
    return Repeated(examples, *check_integers(steps=steps))


def scan_batches(step: Callable, start: Any, batches: Batches) -> tuple[Any, Any]:
    """A scan of `step(carry, batch) -> (carry, out)`, which skips `Masked` batches that are empty.

    Nothing is repeated: the scan closes over the examples that every step has. A `TaskState` is
    what a scan has led to, so that there is nothing to do.
    """
    if isinstance(batches, TaskState):
        ended = batches.params, batches.opt_state, batches.model_state
        return _as_given(start, ended), (batches.loss[None], None)
    step = unless_empty(step)
    if isinstance(batches, Repeated):
        return jax.lax.scan(lambda c, _: step(c, batches.examples), start, length=batches.steps)
    return jax.lax.scan(step, start, batches)


@jax.custom_jvp
def _as_given(start: Any, ended: Any) -> Any:
    """`ended`, which depends on `start` in a way that is not known any more."""
    return ended


@_as_given.defjvp
def _of_the_start(primals, tangents):
    raise ValueError(
        "the inner loop of a task that was streamed has no derivative, which rj.maml and the like "
        "need: use rj.reptile, or rj.fomaml."
    )


def scan_parts(
    part: Callable, start: Any, batches: Batches, parts: int, steps: int
) -> tuple[Any, Any]:
    """A scan of `part(carry, batches) -> (carry, out)` over `parts` of `steps` steps each."""
    if isinstance(batches, Repeated):
        few = dataclasses.replace(batches, steps=steps)
        return jax.lax.scan(lambda carry, _: part(carry, few), start, length=parts)
    cut = lambda leaf: leaf.reshape(parts, steps, *leaf.shape[1:])
    return jax.lax.scan(part, start, jax.tree.map(cut, batches))


def split_last(batches: Batches) -> tuple[Batches, Examples]:
    """All steps but the last, and the last one's mini-batch."""
    if isinstance(batches, Repeated):
        return dataclasses.replace(batches, steps=batches.steps - 1), batches.examples
    return jax.tree.map(lambda x: x[:-1], batches), jax.tree.map(lambda x: x[-1], batches)
