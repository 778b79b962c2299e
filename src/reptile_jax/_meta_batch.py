"""How the tasks of a meta-batch run: side by side, in chunks, one after another, on many devices.

The result is the same to rounding. The scan's carry adds up the sums over tasks, so memory grows
with the tasks that run at once, not with the meta-batch.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reptile_jax._checks import check_task
from reptile_jax._devices import Mesh, all_reduce, over_devices, repeat_last
from reptile_jax._types import Draws, MetaBatch, OptState, Params, Task, TaskGradient


class TaskMean(NamedTuple):
    """The mean over the tasks of a meta-batch."""

    gradient: Params  # weighted mean over the tasks that count; zero if none does
    opt_state: OptState | None  # where the next meta step's inner loops start
    weight: jax.Array  # [], the sum of the weights
    losses: jax.Array  # [tasks, steps]
    finite: jax.Array  # [tasks] bool


class _Part(NamedTuple):
    """What a task, or a chunk of tasks, adds to the sums."""

    gradient: Params
    opt_state: OptState | None
    weight: jax.Array


def mean_over_tasks(
    compute: Callable[[Params, OptState | None, Task], TaskGradient],
    params: Params,
    opt_state: OptState | None,
    tasks: MetaBatch,
    at_once: int | None,
    carry: bool,
    mesh: Mesh | None,
) -> TaskMean:
    """Runs `compute` on every task and takes the weighted mean.

    A task whose losses, gradient, state or weight are not all finite does not count.

    Args:
      compute: `(params, opt_state, task) -> TaskGradient`.
      params: θ; gradients have its structure.
      opt_state: where inner optimisers start; None resets them for every task, and keeps none.
      tasks: `[tasks, ...]`, or `Draws`.
      at_once: tasks under one `vmap` on each device; by default one on a CPU, else all.
      carry: hand the inner optimiser's state from task to task; needs `at_once` = 1 and one device.
        Otherwise the mean over the tasks is handed on.
      mesh: divides the tasks over its devices, in order.
    """
    draws = isinstance(tasks, Draws)
    each, distribution = (tasks.keys, tasks.distribution) if draws else (tasks, None)
    num_tasks, num_devices = len(jax.tree.leaves(each)[0]), mesh.size if mesh else 1
    # On a CPU, batched matrix products over tasks are slower than one task after another.
    one_by_one = carry or jax.default_backend() == "cpu"
    of_device = -(-num_tasks // num_devices)
    at_once = min(at_once or (1 if one_by_one else of_device), of_device)

    run = functools.partial(_run, compute, at_once=at_once, carry=carry)

    def run_part(shared, part):
        sums, _, report = run(shared, part)
        sums, report = all_reduce(sums, report)
        return sums, None, report

    exist = jnp.arange(of_device * num_devices) < num_tasks
    run_all = over_devices(run_part, mesh) if mesh and num_devices > 1 else run
    sums, ended, (losses, finite) = run_all(
        (params, opt_state, distribution), (repeat_last(each, len(exist)), exist)
    )
    divide = lambda total, like: _divide(total, sums.weight, like)
    gradient = jax.tree.map(divide, sums.gradient, params)
    if not carry:
        ended = jax.tree.map(divide, sums.opt_state, opt_state)
    return TaskMean(gradient, ended, sums.weight, losses[:num_tasks], finite[:num_tasks])


def _run(compute, shared, tasks_and_exist, *, at_once: int, carry: bool):
    """One device's part: sums, the inner state to start the next from, `(losses, finite)`.

    A task that does not exist has no weight.
    """
    params, opt_state, distribution = shared
    zero = jnp.zeros((), jnp.result_type(float))  # float64 where that is enabled

    def run_one(opt_state, task, exists):
        if distribution is not None:
            task = check_task(distribution.sample(task))
        result = compute(params, opt_state, task)
        given = jnp.asarray(1.0 if task.weight is None else task.weight, zero.dtype)
        finite = _all_finite(result) & jnp.isfinite(given)
        weight = jnp.where(exists & finite & (given > 0), given, 0)
        ended = None if opt_state is None else result.opt_state
        moved = _weighted(weight, _with_counts_from(None if carry else opt_state, ended))
        part = _Part(_weighted(weight, result.gradient), moved, weight)
        return part, where(weight > 0, ended, opt_state), (result.losses, finite)

    def run_chunk(opt_state, chunk, exist):
        parts, _, report = jax.vmap(run_one, (None, 0, 0))(opt_state, chunk, exist)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), parts), opt_state, report

    def add(sums_and_state, chunk):
        sums, opt_state = sums_and_state
        part, ended, report = (run_one if at_once == 1 else run_chunk)(opt_state, *chunk)
        return (jax.tree.map(jnp.add, sums, part), ended if carry else opt_state), report

    unmoved = _with_counts_from(None if carry else opt_state, opt_state)
    zeros = _Part(_weighted(zero, params), _weighted(zero, unmoved), zero)
    (sums, ended), report = jax.lax.scan(
        add, (zeros, opt_state), _in_chunks(tasks_and_exist, at_once)
    )
    if at_once > 1:
        number = len(tasks_and_exist[1])
        report = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], report)
    return sums, ended, report


def _in_chunks(tasks_and_exist, at_once: int):
    """The same, led by `[chunks, at_once]`, or as it is if one at once.

    A last chunk that is not full repeats the last task, and `exist` is false there.
    """
    if at_once == 1:
        return tasks_and_exist
    tasks, exist = tasks_and_exist
    chunks = -(-len(exist) // at_once)
    size = chunks * at_once
    exist = jnp.pad(exist, (0, size - len(exist)))
    shape = lambda leaf: leaf.reshape(chunks, at_once, *leaf.shape[1:])
    return jax.tree.map(shape, (repeat_last(tasks, size), exist))


def _is_inexact(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _all_finite(tree) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if _is_inexact(leaf)]
    return jnp.all(jnp.stack(leaves))


def where(condition, tree, other):
    """Selects rather than multiplies: a NaN that is not chosen leaves no trace."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


# The sums: floating-point leaves add up, in float32 at least. Integer leaves are counts of inner
# steps, and what adds up is how far each task has counted: the mean of that is exact where tasks
# take equally many steps, whatever the weights, and is rounded where they do not. (Not so in
# `optax.MultiSteps`, which counts in cycles: do not average its state.)


def _with_counts_from(start, ended):
    def count(first, leaf):
        if _is_inexact(leaf):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.integer):
            raise TypeError(
                f"an inner optimiser's state with {leaf.dtype} in it has no mean over the tasks: "
                'use inner_opt_state="reset" or "carry".'
            )
        return (leaf - first).astype(jnp.float32)

    return None if start is None else jax.tree.map(count, start, ended)


def _weighted(weight, tree):
    def weigh(leaf):
        leaf = leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf
        return jnp.where(weight > 0, weight.astype(leaf.dtype) * leaf, 0)

    return jax.tree.map(weigh, tree)


def _divide(total, weight, like):
    mean = total / jnp.where(weight > 0, weight, 1).astype(total.dtype)
    if _is_inexact(like):
        return mean.astype(like.dtype)
    return like + jnp.round(mean).astype(like.dtype)
