"""Many meta-trainings in one program: seeds and rates are the vectorised axis.

Rates and numbers of meta steps are arguments of the compiled program: one program serves a whole
grid of rates and every length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from reptile_jax._types import Draws, Key, LossFn, ScoreFn
from reptile_jax.evaluation import _adaptation_curve

InnerOptimizer = Callable[[Any], optax.GradientTransformation]  # of a rate


class Method(NamedTuple):
    """A meta-learner without its rates. Build each once: it has compiled programs of its own."""

    gradient: Callable[[LossFn, optax.GradientTransformation], rj.MetaGradient]
    inner: InnerOptimizer
    outer: Callable[[Any], optax.GradientTransformation]  # of a schedule
    inner_opt_state: Literal["reset", "average"] = "reset"  # as in `rj.meta_learner`


class Runs(NamedTuple):
    """Meta-trainings side by side: every leaf is led by `[runs]`."""

    state: rj.MetaState
    key: Key  # of the tasks
    inner_rate: jax.Array
    outer_rate: jax.Array  # at the start; annealed linearly to 0
    left_out: jax.Array  # tasks so far whose loss or gradient was not finite


def first(
    method: Method,
    init: Callable[[Key], Any],
    seeds: Sequence[int],
    inner_rates: Sequence[float],
    outer_rates: Sequence[float],
) -> Runs:
    """Runs before their first meta step, `[runs]`; the same seed starts from the same parameters.

    Args:
      init: `key -> params`.
      seeds, inner_rates, outer_rates: one for each run.
    """

    @jax.jit
    @jax.vmap
    def start(seed, inner_rate, outer_rate):
        init_key, task_key = jax.random.split(jax.random.key(seed))
        params = init(init_key)
        inner = (
            method.inner(inner_rate).init(params) if method.inner_opt_state == "average" else None
        )
        outer = method.outer(lambda count: outer_rate).init(params)
        zero = jnp.zeros((), jnp.int32)
        return Runs(
            rj.MetaState(params, outer, inner, zero), task_key, inner_rate, outer_rate, zero
        )

    rates = (np.asarray(rates, np.float32) for rates in (inner_rates, outer_rates))
    return start(np.asarray(seeds, np.uint32), *rates)


def advance(
    method: Method,
    loss_fn: LossFn,
    runs: Runs,
    distribution: rj.TaskDistribution,
    steps: int,
    total: int,
    *,
    meta_batch: int,
    side_by_side: bool,
) -> Runs:
    """Takes `steps` meta steps of each run.

    Args:
      steps, total: meta steps now, and those over which the outer rate goes to 0.
      side_by_side: runs under `vmap`, in one dispatch. Otherwise one after another, by one program
        for any number of runs: faster for convolutions on a CPU.
    """
    train = lambda run: _advance(method, loss_fn, run, distribution, steps, total, meta_batch)
    return _vmapped(train, runs) if side_by_side else _in_turn(train, runs)


@functools.partial(jax.jit, static_argnames=("method", "loss_fn", "meta_batch"))
def _advance(method, loss_fn, run: Runs, distribution, steps, total, meta_batch) -> Runs:
    """Of one run: leaves without the leading axis."""
    gradient = method.gradient(loss_fn, method.inner(run.inner_rate))
    outer = method.outer(lambda count: run.outer_rate * (1 - count / total))

    def step(_, carry):
        state, left_out = carry
        step_key = jax.random.fold_in(run.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(meta_batch))
        state, info = rj.meta_step(
            gradient,
            outer,
            state,
            Draws(distribution, keys),
            inner_opt_state=method.inner_opt_state,
        )
        return state, left_out + jnp.sum(~info.finite, dtype=jnp.int32)

    state, left_out = jax.lax.fori_loop(0, steps, step, (run.state, run.left_out))
    return run._replace(state=state, left_out=left_out)


def scores(
    inner: InnerOptimizer,
    loss_fn: LossFn,
    score_fn: ScoreFn,
    runs: Runs,
    distribution: rj.TaskDistribution,
    key: Key,
    *,
    num_tasks: int,
    score_every: int,
    side_by_side: bool,
) -> Any:
    """Scores of each run on the same held-out tasks, leaves `[runs, tasks, points, ...]`.

    The form of `rj.evaluate` for many runs. `inner` is a method's inner optimiser; it starts where
    training left its state.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_tasks))
    of_run = lambda run: _scores(inner, loss_fn, score_fn, run, distribution, keys, score_every)
    return _vmapped(of_run, runs) if side_by_side else _in_turn(of_run, runs)


@functools.partial(jax.jit, static_argnames=("inner", "loss_fn", "score_fn", "score_every"))
def _scores(inner, loss_fn, score_fn, run: Runs, distribution, keys, score_every) -> Any:
    optimizer, params = inner(run.inner_rate), run.state.params
    kept = run.state.inner_opt_state

    def of_task(key):
        task = distribution.sample(key)
        start = optimizer.init(params) if kept is None else kept
        score = lambda params: score_fn(params, task)
        return _adaptation_curve(
            loss_fn, score, optimizer, params, start, task.support, score_every
        )[1]

    return jax.lax.map(of_task, keys)


def _vmapped(function: Callable[[Runs], Any], runs: Runs) -> Any:
    return jax.vmap(function)(runs)


def _in_turn(function: Callable[[Runs], Any], runs: Runs) -> Any:
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], runs) for i in range(len(runs.inner_rate))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(function, each))


def sequential_on_cpu() -> bool:
    """Whether runs of a convolutional network go one after another."""
    return jax.default_backend() == "cpu"
