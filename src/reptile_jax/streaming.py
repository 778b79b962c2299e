"""Inner loops whose mini-batches come from a Python iterator: long ones, on data from the host.

    task = rj.start_task(optimizer, params)
    for task, info in rj.stream(loss_fn, optimizer, task, batches, until=10_000):
        print(int(task.step), info.losses.mean())

Memory does not grow with the number of steps. A task can be saved in the middle. With a meta step
after the loop this is Reptile as a distributed algorithm: each process runs inner steps on a stream
of its own, and a meta step is one exchange.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reptile_jax import _checks
from reptile_jax._devices import AXIS, Placement, as_arrays, kept, local_parts, on_one_part
from reptile_jax._state_checks import check_usable
from reptile_jax._types import (
    Examples,
    InnerInfo,
    LossFn,
    ModelState,
    Optimizer,
    OptState,
    Params,
    Task,
    TaskState,
)
from reptile_jax._values import kind
from reptile_jax.reptile import inner_loop


def start_task(
    optimizer: Optimizer,
    params: Params,
    opt_state: OptState | None = None,
    model_state: ModelState = None,
) -> TaskState:
    """The state of a task before its first inner step. It is a copy.

    Of arrays on a mesh with an axis "tasks", such as a `MetaState`'s, it is on the first of this
    process's parts of that axis. Over other axes it stays divided.

    Args:
      params: θ, a pytree of floating-point arrays.
      opt_state: where the optimiser starts; by default its first state. With `meta_learner`:
        `MetaState.inner_opt_state`.
      model_state: where the model's state starts, for a model that has one.

    Raises:
      TypeError: for parameters that are not floating-point, or what is no optimiser.
      ValueError: for arrays that were donated, and for a model that is divided over processes.
    """
    _checks.check_optimizer(optimizer)
    _checks.check_start(params, opt_state, model_state)
    given = as_arrays((params, opt_state, model_state))
    params, opt_state, model_state = jax.tree.map(lambda x: jnp.copy(on_one_part(x)), given)
    opt_state = optimizer.init(params) if opt_state is None else opt_state
    none_yet = jnp.full((), jnp.nan, jnp.result_type(float))
    task = TaskState(params, opt_state, jnp.int32(0), none_yet, model_state)
    place = _place(task)
    if place is None:
        return task
    divided = lambda leaf: isinstance(leaf.sharding, NamedSharding)
    return jax.tree.map(lambda x: x if divided(x) else jax.device_put(x, place), task)


def stream(
    loss_fn: LossFn,
    optimizer: Optimizer,
    state: TaskState,
    batches: Iterator[Examples],
    *,
    until: int,
    steps_per_dispatch: int = 20,
) -> Iterator[tuple[TaskState, InnerInfo]]:
    """Takes inner steps until `state.step` is `until`, yielding `(state, info)` by the dispatch.

    A dispatch is `inner_loop` on `steps_per_dispatch` mini-batches, with its results to rounding.
    While the device computes, those of the next are taken from the iterator, stacked and put on the
    device: it has at most three dispatches' mini-batches. No more are taken than the steps need.

    To go on with a task that was saved, give its state and an iterator that begins with mini-batch
    number `state.step`. With the same `steps_per_dispatch` the task then ends as one that never
    stopped, bit for bit: dispatches end at multiples of it. The iterator is ahead of the state that
    is yielded, so do not save the iterator's own position: use `state.step`.

    Args:
      loss_fn, optimizer: as in `inner_loop`. Make them once: each has its own compiled program.
      state: of `start_task`, or restored. Its memory is reused.
      batches: of mini-batches of one kind, a pytree of NumPy or JAX arrays, leaves `[batch, ...]`.
        It is called in this thread.
      steps_per_dispatch: more for inner steps shorter than a millisecond, fewer for mini-batches
        of many megabytes.

    Yields:
      `TaskState`, and `InnerInfo` whose leaves are led by the steps of the dispatch.

    Raises:
      TypeError: for what is not an iterator, a loss, an optimiser or a state of a task, and for
        numbers that are not integers.
      ValueError: for `steps_per_dispatch` below 1; for a state that was donated or is of another
        optimiser; for mini-batches that end early, or differ from the first in structure, shape or
        dtype. What goes wrong with a mini-batch is raised after the steps before it are yielded.
    """
    (until,) = _checks.check_integers(0, until=until)
    (most,) = _checks.check_integers(steps_per_dispatch=steps_per_dispatch)
    _checks.check_stream(loss_fn, optimizer, state, batches)

    # A generator inside, so that checks run at the call and not at the first iteration.
    def dispatches(state: TaskState) -> Iterator[tuple[TaskState, InnerInfo]]:
        check_usable(state, donated=True)  # another loop may have begun with it
        placed, blocks = _placement(state), _blocks(batches, int(state.step), until, most, state)
        block, before = next(blocks, None), None
        while block is not None:
            state, info = _steps(loss_fn, optimizer, placed, state, block)
            del block  # so that its memory is free as soon as the device is done with it
            try:
                block = next(blocks, None)  # the device computes meanwhile
            except Exception:
                yield state, info
                raise
            yield state, info
            # One dispatch waits while another computes: with more, more blocks were in memory.
            jax.block_until_ready(before)
            before = info.losses

    return dispatches(state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _steps(loss_fn, optimizer, placed, state, block):
    start = state.params, block, state.opt_state, state.model_state
    adapted = inner_loop(loss_fn, optimizer, *start)
    step = state.step + len(adapted.losses)
    last = adapted.losses[-1].astype(state.loss.dtype)
    state = TaskState(adapted.params, adapted.opt_state, step, last, adapted.model_state)
    return kept(state, placed), InnerInfo(adapted.losses, adapted.aux)


def _blocks(
    batches: Iterator[Examples], step: int, until: int, most: int, state: TaskState
) -> Iterator[Examples]:
    """Each dispatch's mini-batches, on the device, leaves `[steps, batch, ...]`."""
    place, kinds = _place(state), []
    while step < until:
        end = min(until, (step // most + 1) * most)
        yield _block(batches, step, end, until, kinds, place)  # no variable keeps it in memory
        step = end


def _block(
    batches: Iterator[Examples], step: int, end: int, until: int, kinds: list, place: Any
) -> Examples:
    """The mini-batches of the steps up to `end`; `kinds` is that of the first, or empty before."""
    given = list(itertools.islice(batches, end - step))
    if not kinds:
        kinds.extend(map(kind, given[:1]))
    problem = None
    for at, batch in enumerate(given, step):
        if kind(batch) != kinds[0]:
            problem = (
                f"mini-batch {at} is {kind(batch)!s}, but the first one was {kinds[0]!s}: give all "
                "the same structure, shapes and dtypes, with rj.tasks.Masked where sizes differ"
            )
    if problem is None and len(given) < end - step:
        problem = (
            f"the mini-batches end after {step + len(given)} of {until} inner steps: give as many "
            "as steps, for instance with itertools.cycle, or a lower `until`"
        )
    if problem:
        raise ValueError(f"{problem}.")
    return jax.device_put(jax.tree.map(_stack, *given), place)


def _stack(*leaves: Any) -> Any:
    return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)


def _place(state: TaskState) -> Any:
    """Where mini-batches go; None for where JAX puts arrays."""
    leaf = jax.tree.leaves(state.params)[0]
    if isinstance(leaf, jax.core.Tracer):
        return None
    if isinstance(leaf.sharding, NamedSharding):
        return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return leaf.sharding if leaf.committed else None


def _placement(state: TaskState) -> Placement | None:
    """How the state is divided over the axes of a model, if it is."""
    leaves, treedef = jax.tree.flatten(state)
    if not isinstance(_place(state), NamedSharding):
        return None
    return Placement(treedef, tuple(leaf.sharding for leaf in leaves))


def streamed(*tasks: TaskState | Task, mesh: Mesh | None = None) -> Task:
    """A meta-batch of tasks that `stream` has run, for `learner.step`.

        state, info = learner.step(state, rj.streamed(task, mesh=learner.mesh))

    Each has its last loss in `MetaInfo.losses`, `[tasks, 1]`. What needs only where an inner loop
    ended works: `rj.reptile`, `rj.fomaml` with a query set, `rj.foml` with one as its tail.

    Args:
      tasks: states of tasks, or `Task(state, query, weight)`. With a mesh over processes those of
        this process; each gives as many.
      mesh: the learner's. It has one exchange, in `learner.step`.

    Raises:
      TypeError: for what is not a state of a task.
      ValueError: for tasks of different kinds, or not as many for each of this process's parts of
        the mesh's axis "tasks"; in `learner.step` for tasks of another learner, and for
        meta-gradients that need the inner loop itself, such as `rj.maml`.
    """
    each = [task if isinstance(task, Task) else Task(task) for task in tasks]
    _checks.check_streamed(each, mesh)
    if mesh is None:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return jax.tree.map(functools.partial(_over_parts, mesh), *each)


def _over_parts(mesh: Mesh, *leaves: Any) -> jax.Array:
    """The leaves of this process's tasks as its part of an array over all processes."""
    here = local_parts(mesh)
    sharding = getattr(leaves[0], "sharding", None)
    over_model = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    spec = PartitionSpec(AXIS, *over_model)
    stacked = jnp.stack(leaves)
    part = jax.device_put(stacked, NamedSharding(here, spec))
    shape = len(leaves) * mesh.shape[AXIS] // here.shape[AXIS], *stacked.shape[1:]
    arrays = [shard.data for shard in part.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), arrays)
