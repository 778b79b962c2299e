"""How the tasks of a meta-batch run: side by side, in chunks, one after another, on many devices.

The result is the same to rounding. The scan's carry adds up the sums over tasks, so memory grows
with the tasks that run at once, not with the meta-batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from reptile_jax._checks import check_task
from reptile_jax._devices import Mesh, all_reduce, automatic, over_devices, parts, repeat_last
from reptile_jax._tasks_at_once import by_platform
from reptile_jax._types import (
    Draws,
    MetaBatch,
    MetaState,
    ModelState,
    OptState,
    Params,
    Task,
    TaskGradient,
    TaskState,
)


class Inner(NamedTuple):
    """What inner loops start from besides θ, or a policy for each."""

    opt_state: OptState  # None: the inner optimiser's first state, and none is kept
    model_state: ModelState  # None: the model has none


class TaskMean(NamedTuple):
    """The mean over the tasks of a meta-batch."""

    gradient: Params  # weighted mean over the tasks that count; zero if none does
    inner: Inner  # what the next meta step's inner loops start from
    weight: jax.Array  # [], the sum of the weights
    loss: jax.Array  # [], weighted mean of their last inner losses, for meta-optimisers
    losses: jax.Array  # [tasks, steps]
    finite: jax.Array  # [tasks] bool
    aux: Any  # leaves [tasks, steps, ...]


class _Part(NamedTuple):
    """What a task, or a chunk of tasks, adds to the sums."""

    gradient: Params
    inner: Inner  # of what is averaged
    loss: jax.Array  # [], the last inner step's
    weight: jax.Array


def mean_over_tasks(
    compute: Callable[..., TaskGradient],
    state: MetaState,
    tasks: MetaBatch,
    policies: Inner,
    at_once: int | None,
    mesh: Mesh | None,
) -> TaskMean:
    """Runs `compute` on every task and takes the weighted mean.

    A task counts only if its losses, gradient and weight are finite, and its states as well, unless
    their policy is "reset".

    Args:
      compute: `(params, opt_state, task) -> TaskGradient`; `model_state` follows if there is one.
      state: θ, and where inner loops start; gradients have the structure of θ.
      tasks: `[tasks, ...]`, or `Draws`.
      policies: of each inner state. "reset": every task starts at the optimiser's first, or at the
        model's that is given; "average": the next meta step starts at the mean over the tasks;
        "carry": it goes from task to task, which needs `at_once` = 1 and one device.
      at_once: tasks under one `vmap` on each device; by default the platform's number.
      mesh: divides the tasks over its devices, in order.
    """
    opt_state = None if policies.opt_state == "reset" else state.inner_opt_state
    params, inner, mesh = state.params, Inner(opt_state, state.model_state), automatic(mesh)
    draws = isinstance(tasks, Draws)
    tasks_or_keys, distribution = (tasks.keys, tasks.distribution) if draws else (tasks, None)
    num_tasks, num_devices = len(jax.tree.leaves(tasks_or_keys)[0]), parts(mesh)
    per_device = -(-num_tasks // num_devices)
    # Traced once for all platforms.
    run_one = jax.jit(functools.partial(_run_one, compute, policies))
    run = functools.partial(_sum_over_tasks, run_one, policies)
    ran = isinstance(tasks, Task) and isinstance(tasks.support, TaskState)
    if at_once or "carry" in policies or ran:
        run = functools.partial(run, min(at_once or 1, per_device))
    else:
        support = jax.eval_shape(_first_support, tasks_or_keys, distribution)
        run = by_platform(run, per_device, params, support)

    def run_part(shared, part):
        sums, _, report = run(shared, part)
        sums, report = all_reduce(sums, report)
        return sums, None, report

    is_real = jnp.arange(per_device * num_devices) < num_tasks
    run_all = over_devices(run_part, mesh) if mesh and num_devices > 1 else run
    sums, ended, report = run_all(
        (params, inner, distribution), (repeat_last(tasks_or_keys, len(is_real)), is_real)
    )
    divide = lambda total, like: _divide(total, sums.weight, like)
    gradient = jax.tree.map(divide, sums.gradient, params)
    averaged = jax.tree.map(divide, sums.inner, _only("average", policies, inner))
    after = {"reset": inner, "average": averaged, "carry": ended or inner}
    inner = Inner(*(after[policy][part] for part, policy in enumerate(policies)))
    if opt_state is None:
        inner = inner._replace(opt_state=state.inner_opt_state)
    losses, finite, aux = jax.tree.map(lambda leaf: leaf[:num_tasks], report)
    loss = divide(sums.loss, losses)
    return TaskMean(gradient, inner, sums.weight, loss, losses, finite, aux)


def _only(chosen: str, policies: Inner, inner: Inner) -> Inner:
    """The inner states of one policy, with None for the others."""
    parts = zip(inner, policies, strict=True)
    return Inner(*(part if policy == chosen else None for part, policy in parts))


def _first_support(tasks_or_keys, distribution):
    task = jax.tree.map(lambda leaf: leaf[0], tasks_or_keys)
    return (task if distribution is None else check_task(distribution.sample(task))).support


def _run_one(compute, policies: Inner, shared, inner: Inner, task, is_real):
    """One task, given or by its key: `(_Part, inner state of the next, (losses, finite, aux))`.

    A task that is not real, but fills a chunk or a device, has no weight.
    """
    params, distribution = shared
    if distribution is not None:
        task = check_task(distribution.sample(task))
    stateful = () if inner.model_state is None else (inner.model_state,)
    result = compute(params, inner.opt_state, task, *stateful)
    task_weight = 1.0 if task.weight is None else task.weight
    task_weight = jnp.asarray(task_weight, jnp.result_type(float))  # float64 where enabled
    ended = Inner(None if inner.opt_state is None else result.opt_state, result.model_state)
    lasting = tuple(part for part, how in zip(ended, policies, strict=True) if how != "reset")
    finite = _all_finite((result.gradient, result.losses, task_weight, lasting))
    weight = jnp.where(is_real & finite & (task_weight > 0), task_weight, 0)
    averaged = (_only("average", policies, state) for state in (inner, ended))
    inner_sum = _weighted(weight, _with_counts_from(*averaged))
    carried = select(weight > 0, ended, inner)
    old_and_new = zip(inner, carried, policies, strict=True)
    after = Inner(*(new if how == "carry" else old for old, new, how in old_and_new))
    report = (result.losses, finite, result.aux)
    last = jnp.sum(result.losses.reshape(-1)[-1:]).astype(weight.dtype)
    part = _Part(_weighted(weight, result.gradient), inner_sum, _weighted(weight, last), weight)
    return part, after, report


def _sum_over_tasks(run_one, policies: Inner, at_once: int, shared, tasks_and_real):
    """One device's part: sums, the inner state of its last task, `(losses, finite, aux)`."""
    params, inner, distribution = shared
    zero = jnp.zeros((), jnp.result_type(float))
    run_one = functools.partial(run_one, (params, distribution))

    def run_chunk(inner, chunk, is_real):
        parts, _, report = jax.vmap(run_one, (None, 0, 0))(inner, chunk, is_real)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), parts), inner, report

    def add(sums_and_inner, chunk):
        sums, inner = sums_and_inner
        part, inner, report = (run_one if at_once == 1 else run_chunk)(inner, *chunk)
        return (jax.tree.map(jnp.add, sums, part), inner), report

    start = _only("average", policies, inner)
    no_inner = _weighted(zero, _with_counts_from(start, start))
    zeros = _Part(_weighted(zero, params), no_inner, zero, zero)
    (sums, ended), report = _in_turn(add, (zeros, inner), _in_chunks(tasks_and_real, at_once))
    if at_once > 1:
        number = len(tasks_and_real[1])
        report = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], report)
    return sums, ended, report


def _in_turn(step, start, chunks):
    """`lax.scan` over the chunks, but no loop around a single one.

    Where a model is divided, libtpu runs all that is in such a loop twice.
    """
    if len(jax.tree.leaves(chunks)[0]) > 1:
        return jax.lax.scan(step, start, chunks)
    after, report = step(start, jax.tree.map(lambda leaf: leaf[0], chunks))
    return after, jax.tree.map(lambda leaf: leaf[None], report)


def _in_chunks(tasks_and_real, at_once: int):
    """The same, led by `[chunks, at_once]`, or as it is if one at once.

    A last chunk that is not full repeats the last task, and `is_real` is false there.
    """
    if at_once == 1:
        return tasks_and_real
    tasks, is_real = tasks_and_real
    chunks = -(-len(is_real) // at_once)
    size = chunks * at_once
    is_real = jnp.pad(is_real, (0, size - len(is_real)))
    shape = lambda leaf: leaf.reshape(chunks, at_once, *leaf.shape[1:])
    return jax.tree.map(shape, (repeat_last(tasks, size), is_real))


def _is_inexact(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _all_finite(tree) -> jax.Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if _is_inexact(leaf)]
    return jnp.all(jnp.stack(leaves))


def norm(tree) -> jax.Array:
    """The norm of all leaves together, in float32 at least: in float16 squares soon overflow."""
    return optax.tree.norm(jax.tree.map(_wide, tree))


def select(condition, tree, other):
    """Selects rather than multiplies: a NaN that is not chosen leaves no trace."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


# The sums: floating-point leaves add up, in float32 at least. Integer leaves are counts of inner
# steps, and what adds up is how far each task has counted: the mean of that is exact where tasks
# take equally many steps, whatever the weights, and is rounded where they do not. Counts that start
# again in cycles have no mean. Random keys stay the first.
_CYCLES = (optax.MultiStepsState, optax.ApplyEvery, optax.contrib.SAMState)


def _with_counts_from(start, ended):
    in_cycles = lambda node: isinstance(node, _CYCLES)
    for node in filter(in_cycles, jax.tree.leaves(start, is_leaf=in_cycles)):
        raise TypeError(
            f"a state that counts in cycles ({type(node).__name__}) has no mean over the tasks: "
            'use "reset" or "carry".'
        )

    def count(first, leaf):
        if _is_inexact(leaf):
            return leaf
        if _is_key(leaf):
            return jnp.zeros(leaf.shape)
        if not jnp.issubdtype(leaf.dtype, jnp.integer):
            raise TypeError(
                f"an inner optimiser's or a model's state with {leaf.dtype} in it has no mean over "
                'the tasks: use "reset" or "carry".'
            )
        return (leaf - first).astype(jnp.float32)

    return jax.tree.map(count, start, ended)


def _weighted(weight, tree):
    def weigh(leaf):
        leaf = _wide(leaf)
        return jnp.where(weight > 0, weight.astype(leaf.dtype) * leaf, 0)

    return jax.tree.map(weigh, tree)


def _wide(leaf):
    return leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf


def _divide(total, weight, like):
    mean = total / jnp.where(weight > 0, weight, 1).astype(total.dtype)
    if _is_key(like):
        return like
    if _is_inexact(like):
        return mean.astype(like.dtype)
    return like + jnp.round(mean).astype(like.dtype)
