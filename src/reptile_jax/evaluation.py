"""Adapts to held-out tasks and scores: the mean, its 95% interval, the curve over inner steps."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax import _checks
from reptile_jax._devices import Mesh, automatic, gather, over_devices, repeat_last, replicate
from reptile_jax._types import (
    Key,
    LossFn,
    Optimizer,
    OptState,
    Params,
    ScoreFn,
    TaskDistribution,
)
from reptile_jax.reptile import inner_loop


class Evaluation(NamedTuple):
    """Scores of many tasks, by the number of inner steps taken."""

    steps: np.ndarray  # [points], inner steps taken at each point of the curve, from 0
    mean: Any  # the score's pytree, leaves [points, ...]: the mean over tasks
    ci95: Any  # the same: half the width of its 95% interval, 1.96 · sd / √tasks
    scores: Any  # the same, leaves [tasks, points, ...]


def evaluate(
    loss_fn: LossFn,
    score_fn: ScoreFn,
    optimizer: Optimizer,
    params: Params,
    distribution: TaskDistribution,
    key: Key,
    *,
    num_tasks: int,
    opt_state: OptState | None = None,
    score_every: int | None = None,
    tasks_at_once: int | None = None,
    tasks_per_dispatch: int | None = None,
    report: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Adapts `params` to `num_tasks` tasks and scores the result.

    The same key gives the same tasks, whatever is evaluated on them. The interval is for the mean
    over tasks with these parameters: 1.96 standard errors, since tasks are independent draws. It
    does not include the spread over training runs.

    Args:
      loss_fn, optimizer: the inner loop's; the optimiser may differ from training's. Make them, and
        `score_fn`, once: each has a compiled program of its own.
      score_fn: `(params, task) -> score`, a number, or a pytree of numbers and arrays. The task is
        as it was drawn.
      params: the initialisation θ.
      distribution: p(τ) of held-out tasks.
      opt_state: where each task's optimiser starts: a state of `optimizer`, such as
        `MetaState.inner_opt_state`. By default its first state.
      score_every: inner steps between points of the curve; it has to divide the number of steps.
        By default only the start and the end are scored.
      tasks_at_once: tasks under one `vmap` on each device; by default one on a CPU, else up to 256.
      tasks_per_dispatch: tasks between calls of `report`; by default all.
      report: called with the tasks done and `num_tasks`.
      mesh: divides the tasks over many devices, as in `meta_learner`.

    Raises:
      TypeError: for sizes that are not integers, what is not a key, or has no `sample`.
      ValueError: for fewer than two tasks, which have no interval, for other sizes below 1, or a
        `score_every` that does not divide the inner steps.
    """
    sizes = {
        "score_every": score_every,
        "tasks_at_once": tasks_at_once,
        "tasks_per_dispatch": tasks_per_dispatch,
    }
    functions = {"score_fn": score_fn, "report": report or print}
    _checks.check_key(key)
    _checks.check_integers(2, num_tasks=num_tasks)  # fewer have no interval
    _checks.check_integers(**{name: size for name, size in sizes.items() if size is not None})
    _checks.check_distribution(distribution)
    _checks.check_adaptation(loss_fn, optimizer, params, opt_state, **functions)
    _checks.check_mesh(mesh)
    if tasks_at_once is None:
        tasks_at_once = 1 if jax.default_backend() == "cpu" else 256
    tasks_per_dispatch = tasks_per_dispatch or num_tasks
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_tasks))
    mesh = automatic(mesh)
    params, opt_state, distribution, keys = replicate((params, opt_state, distribution, keys), mesh)
    chunks = []
    for start in range(0, num_tasks, tasks_per_dispatch):
        chunks.append(
            jax.device_get(
                _scores(
                    loss_fn,
                    score_fn,
                    optimizer,
                    params,
                    opt_state,
                    distribution,
                    keys[start : start + tasks_per_dispatch],
                    score_every,
                    tasks_at_once,
                    mesh,
                )
            )
        )
        if report is not None:
            report(min(start + tasks_per_dispatch, num_tasks), num_tasks)
    join = lambda *parts: np.concatenate(parts).astype(np.float64)
    scores = jax.tree.map(join, *(scores for _, scores in chunks))
    spread = lambda leaf: 1.96 * leaf.std(0, ddof=1) / math.sqrt(num_tasks)
    return Evaluation(
        steps=chunks[0][0],
        mean=jax.tree.map(lambda leaf: leaf.mean(0), scores),
        ci95=jax.tree.map(spread, scores),
        scores=scores,
    )


@functools.partial(
    jax.jit,
    static_argnames=("loss_fn", "score_fn", "optimizer", "score_every", "tasks_at_once", "mesh"),
)
def _scores(
    loss_fn,
    score_fn,
    optimizer,
    params,
    opt_state,
    distribution,
    keys,
    score_every,
    tasks_at_once,
    mesh,
):
    """`(steps [points], scores [tasks, points])` of the tasks of `keys`."""

    def score_task(shared, key):
        params, opt_state, distribution = shared
        task = _checks.check_task(distribution.sample(key))
        start = optimizer.init(params) if opt_state is None else opt_state
        return _adaptation_curve(
            loss_fn,
            lambda params: score_fn(params, task),
            optimizer,
            params,
            start,
            task.support,
            score_every,
        )

    def run(shared, keys):
        batch_size = None if tasks_at_once == 1 else min(tasks_at_once, len(keys))
        return jax.lax.map(functools.partial(score_task, shared), keys, batch_size=batch_size)

    shared, num_tasks = (params, opt_state, distribution), len(keys)
    if mesh is None:
        steps, scores = run(shared, keys)
    else:
        each = repeat_last(keys, -(-num_tasks // mesh.size) * mesh.size)
        run_part = lambda shared, keys: gather(run(shared, keys))
        steps, scores = over_devices(run_part, mesh)(shared, each)
    return steps[0], jax.tree.map(lambda leaf: leaf[:num_tasks], scores)


def _adaptation_curve(
    loss_fn: LossFn,
    score: Callable[[Params], Any],
    optimizer: Optimizer,
    params: Params,
    opt_state: OptState,
    batches: Any,
    score_every: int | None = None,
) -> tuple[jax.Array, Any]:
    """Scores `params` before, while and after adapting to one task.

    Returns:
      The inner steps taken `[points]`, and the scores, a pytree with leaves `[points, ...]`.
    """
    num_steps = _checks.check_leading_axis(batches, "steps", "the support set")
    score_every = score_every or num_steps
    if num_steps % score_every:
        raise ValueError(f"score_every={score_every} does not divide the {num_steps} inner steps.")

    def segment(carry, batches):
        params, opt_state = carry
        adapted = inner_loop(loss_fn, optimizer, params, batches, opt_state)
        return (adapted.params, adapted.opt_state), score(params)

    points = num_steps // score_every
    segments = jax.tree.map(
        lambda leaf: leaf.reshape(points, score_every, *leaf.shape[1:]), batches
    )
    (adapted, _), before = jax.lax.scan(segment, (params, opt_state), segments)
    scores = jax.tree.map(
        lambda leaf, last: jnp.concatenate([leaf, jnp.asarray(last)[None]]), before, score(adapted)
    )
    return jnp.arange(points + 1) * score_every, scores
