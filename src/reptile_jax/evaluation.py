"""Adapts to held-out tasks and scores: the mean, its 95% interval, the curve over inner steps."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax import _checks
from reptile_jax._devices import (
    Mesh,
    as_arrays,
    automatic,
    gather,
    in_auto_axes,
    over_devices,
    parts,
    repeat_last,
    replicate,
)
from reptile_jax._tasks_at_once import by_platform
from reptile_jax._types import (
    Key,
    LossFn,
    ModelState,
    Optimizer,
    OptState,
    Params,
    ScoreFn,
    Task,
    TaskDistribution,
)
from reptile_jax.reptile import inner_loop
from reptile_jax.tasks.repeated import scan_parts


class Evaluation(NamedTuple):
    """Scores of many tasks, by the number of inner steps taken."""

    steps: np.ndarray  # [points], inner steps taken at each point of the curve, from 0
    mean: Any  # the score's pytree, leaves [points, ...]: the weighted mean over tasks
    ci95: Any  # the same: half the width of its 95% interval; NaN for a single task
    scores: Any  # the same, leaves [tasks, points, ...], in the order of the tasks


class Spread(NamedTuple):
    """How scores differ between tasks, which all count alike; leaves are led by `[points]`."""

    mean: Any
    worst_tenth: Any  # the mean over the tenth of the tasks whose scores are worst, at least one
    std: Any  # the standard deviation
    quartiles: Any  # [5, points, ...]: the least score, the three quartiles, and the greatest


def spread(scores: Any, *, worst: Literal["lowest", "highest"] = "lowest") -> Spread:
    """How much tasks differ: a report per task, in a few numbers.

    The worst tenth is the measure of fairness between clients of Li et al. 2020 (arXiv:1905.10497).
    It is taken anew at every point of the curve. A score that is NaN counts as the worst.

    Args:
      scores: `Evaluation.scores`, a pytree, leaves `[tasks, points, ...]`.
      worst: the "lowest" scores, as of accuracies, or the "highest", as of errors.

    Raises:
      ValueError: for no scores, and another `worst`.
    """
    if worst not in ("lowest", "highest"):
        raise ValueError(f'worst is "lowest" or "highest", got {worst!r:.80}.')
    number = _checks.check_leading_axis(scores, "tasks", "scores")
    sign, few = 1 if worst == "highest" else -1, -(-number // 10)
    scores = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), scores)
    of_each = lambda function: jax.tree.map(function, scores)
    return Spread(
        mean=of_each(lambda leaf: leaf.mean(0)),
        worst_tenth=of_each(lambda leaf: sign * np.sort(sign * leaf, 0)[-few:].mean(0) + 0.0),
        std=of_each(lambda leaf: leaf.std(0)),
        quartiles=of_each(lambda leaf: np.quantile(leaf, [0, 0.25, 0.5, 0.75, 1], axis=0)),
    )


def evaluate(
    loss_fn: LossFn,
    score_fn: ScoreFn,
    optimizer: Optimizer,
    params: Params,
    tasks: TaskDistribution | Task,
    key: Key | None = None,
    *,
    num_tasks: int | None = None,
    model_state: ModelState = None,
    opt_state: OptState | None = None,
    start_fn: Callable[[Params, Task], Params] | None = None,
    score_every: int | None = None,
    tasks_at_once: int | None = None,
    tasks_per_dispatch: int | None = None,
    report: Callable[[int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Adapts `params` to each task and scores the result: before, and after adapting.

    The tasks are `num_tasks` draws from a distribution, or those that you give, each once. The same
    key gives the same tasks, whatever is evaluated on them.

    With scores x_i and weights w_i (`Task.weight`; 1 without), the mean over n tasks and half the
    width of its 95% interval are

        m = Σ w_i x_i / Σ w_i        1.96 · √(n / (n − 1) · Σ w_i² (x_i − m)²) / Σ w_i

    The second is 1.96 standard errors, which is 1.96 · sd / √n where all weights are equal. It
    takes tasks, with their weights, for independent draws, and m for a ratio of two means, of which
    m − μ ≈ Σ w_i (x_i − μ) / Σ w_i is the first order (Cochran, "Sampling Techniques", 1977,
    chapter 6). It does not include the spread over training runs. A task whose weight is not finite
    and positive has scores, but no part in either. One task has no interval: `ci95` is NaN.

    Args:
      loss_fn, optimizer: the inner loop's; the optimiser may differ from training's. Make them,
        `score_fn` and `start_fn` once: each has a compiled program of its own.
      score_fn: `(params, task) -> score`, a number, or a pytree of numbers and arrays. With a model
        state `(params, model_state, task)`. Both are adapted; the task is as it was drawn or given.
      params: the initialisation θ.
      tasks: p(τ) of held-out tasks; or tasks, a `Task` with leaves led by `[tasks]`. Use
        `rj.tasks.stack_tasks` for a list of tasks, of equal size or not.
      key, num_tasks: for a distribution, and for it alone.
      model_state: where each task's model state starts, such as `MetaState.model_state`.
      opt_state: where each task's optimiser starts: a state of `optimizer`, such as
        `MetaState.inner_opt_state`. By default its first state.
      start_fn: `(params, task) -> params`, where each task starts, given θ and the task; by default
        at θ. What it returns is scored as the curve's first point. `rj.nn.from_prototypes` of the
        support set is one.
      score_every: inner steps between points of the curve; it has to divide the number of steps.
        By default only the start and the end are scored.
      tasks_at_once: as in `meta_learner`, but by default at most 256.
      tasks_per_dispatch: tasks between calls of `report`, and of those given, in a device's memory;
        by default all.
      report: called with the tasks done and the number of tasks.
      mesh: divides the tasks over many devices, as in `meta_learner`.

    Raises:
      TypeError: for sizes that are not integers, what is not a key, or has no `sample`; for a
        distribution without `key` or `num_tasks`, and for given tasks with either.
      ValueError: for sizes below 1, leading axes that disagree, or a `score_every` that does not
        divide the inner steps.
    """
    sizes = {
        "score_every": score_every,
        "tasks_at_once": tasks_at_once,
        "tasks_per_dispatch": tasks_per_dispatch,
    }
    functions = {"score_fn": score_fn, "start_fn": start_fn or print, "report": report or print}
    total = _checks.check_what_to_score(tasks, key, num_tasks)
    _checks.check_integers(**{name: size for name, size in sizes.items() if size is not None})
    _checks.check_adaptation(loss_fn, optimizer, params, opt_state, **functions)
    _checks.check_mesh(mesh)
    at_once = tasks_at_once and int(tasks_at_once)
    how = loss_fn, score_fn, optimizer, start_fn, score_every and int(score_every), at_once
    of_dispatch, mesh = int(tasks_per_dispatch or total), automatic(mesh)
    each, distribution = tasks, None
    if key is not None:
        each, distribution = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(total)), tasks
    shared = replicate((params, as_arrays(model_state), opt_state, distribution), mesh)
    chunks = []
    for start in range(0, total, of_dispatch):
        part = jax.tree.map(lambda leaf, at=start: leaf[at : at + of_dispatch], each)
        scored = _scores(*how, mesh, *shared, replicate(part, mesh))
        chunks.append(jax.device_get(scored))
        if report is not None:
            report(min(start + of_dispatch, total), total)
    steps, scores, weights = zip(*chunks, strict=True)
    join = lambda *parts: np.concatenate(parts).astype(np.float64)
    scores, weights = jax.tree.map(join, *scores), join(*weights)
    over_tasks = lambda i: jax.tree.map(lambda leaf: _mean_and_ci95(leaf, weights)[i], scores)
    return Evaluation(steps[0], mean=over_tasks(0), ci95=over_tasks(1), scores=scores)


def _mean_and_ci95(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weighted mean over the first axis, and half the width of its 95% interval."""
    counts = np.isfinite(weights) & (weights > 0)
    scores, weights = scores[counts], weights[counts].reshape(-1, *[1] * (scores.ndim - 1))
    num_tasks, total = len(scores), weights.sum()
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN for one task, and for none
        mean = (weights * scores).sum(0) / total
        squares = ((weights * (scores - mean)) ** 2).sum(0)
        error = np.sqrt(squares * np.divide(num_tasks, num_tasks - 1)) / total
    return mean, 1.96 * error


@partial(
    jax.jit,
    static_argnames=(
        *("loss_fn", "score_fn", "optimizer", "start_fn", "score_every", "tasks_at_once", "mesh"),
    ),
)
@in_auto_axes
def _scores(
    loss_fn,
    score_fn,
    optimizer,
    start_fn,
    score_every,
    tasks_at_once,
    mesh,
    params,
    model_state,
    opt_state,
    distribution,
    each,
):
    """`(steps [points], scores [tasks, points], weights [tasks])`.

    `each` is led by `[tasks]`: the keys of draws from the distribution, or tasks if that is None.
    """

    def draw(distribution, task):
        return task if distribution is None else _checks.check_task(distribution.sample(task))

    @jax.jit  # traced once for all platforms
    def score_task(shared, task):
        params, model_state, opt_state, distribution = shared
        task = draw(distribution, task)
        if start_fn is not None:
            params = start_fn(params, task)
        steps, scores = _adaptation_curve(
            loss_fn,
            lambda *adapted: score_fn(*adapted, task),
            optimizer,
            params,
            optimizer.init(params) if opt_state is None else opt_state,
            task.support,
            score_every,
            model_state,
        )
        weight = 1.0 if task.weight is None else task.weight
        return steps, scores, jnp.asarray(weight, jnp.result_type(float))

    def score_all(at_once, shared, each):
        batch_size = None if at_once == 1 else at_once
        return jax.lax.map(partial(score_task, shared), each, batch_size=batch_size)

    def run(shared, each):
        number = len(jax.tree.leaves(each)[0])
        if tasks_at_once is not None:
            return score_all(min(tasks_at_once, number), shared, each)
        return by_platform(score_all, min(256, number), params, support)(shared, each)

    first = lambda each: draw(distribution, jax.tree.map(lambda leaf: leaf[0], each)).support
    support = jax.eval_shape(first, each)
    shared = params, model_state, opt_state, distribution
    num_tasks = len(jax.tree.leaves(each)[0])
    if mesh is None:
        steps, *found = run(shared, each)
    else:
        each = repeat_last(each, -(-num_tasks // parts(mesh)) * parts(mesh))
        run_part = lambda shared, each: gather(run(shared, each))
        steps, *found = over_devices(run_part, mesh)(shared, each)
    return steps[0], *jax.tree.map(lambda leaf: leaf[:num_tasks], found)


def _adaptation_curve(
    loss_fn: LossFn,
    score: Callable[..., Any],
    optimizer: Optimizer,
    params: Params,
    opt_state: OptState,
    batches: Any,
    score_every: int | None = None,
    model_state: ModelState = None,
) -> tuple[jax.Array, Any]:
    """Scores `params` before, while and after adapting to one task.

    `score` takes the parameters, and the model state if there is one.

    Returns:
      The inner steps taken `[points]`, and the scores, a pytree with leaves `[points, ...]`.
    """
    num_steps = _checks.check_steps(batches, "the support set")
    score_every = score_every or num_steps
    if num_steps % score_every:
        raise ValueError(f"score_every={score_every} does not divide the {num_steps} inner steps.")

    def score_now(params, model_state):
        return score(params) if model_state is None else score(params, model_state)

    def segment(carry, batches):
        params, opt_state, model_state = carry
        adapted = inner_loop(loss_fn, optimizer, params, batches, opt_state, model_state)
        ended = adapted.params, adapted.opt_state, adapted.model_state
        return ended, score_now(params, model_state)

    points, start = num_steps // score_every, (params, opt_state, model_state)
    (params, _, model_state), before = scan_parts(segment, start, batches, points, score_every)
    after = score_now(params, model_state)
    scores = jax.tree.map(
        lambda leaf, last: jnp.concatenate([leaf, jnp.asarray(last)[None]]), before, after
    )
    return jnp.arange(points + 1) * score_every, scores
