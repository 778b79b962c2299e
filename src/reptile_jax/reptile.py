"""Reptile, and its two gradient-based siblings, FOMAML and MAML.

Nichol, Achiam & Schulman, "On First-Order Meta-Learning Algorithms", 2018, arXiv:1803.02999.
Algorithm 1, serial Reptile, and Algorithm 2, batched Reptile:

    initialise θ                                   initialise θ
    for iteration = 1, 2, ...                      for iteration = 1, 2, ...
        sample a task τ                                sample tasks τ_1 ... τ_n
                                                       for i = 1 ... n
        φ = U_τ^k(θ)                                       φ_i = U_{τ_i}^k(θ)         `inner_loop`
        θ ← θ + ε (φ − θ)                              θ ← θ + ε · 1/n Σ_i (φ_i − θ)  `meta_step`

U_τ^k is k steps of an optimiser on task τ's loss. The last line is one step of SGD, of size ε,
along the meta-gradient θ − φ. So a meta-learner here is a meta-gradient and any Optax optimiser;
serial Reptile is a meta-batch of one; and the siblings differ in the meta-gradient alone:

    Reptile   θ − φ
    FOMAML    ∇L_query at φ                        leaves out dφ/dθ
    MAML      d/dθ L_query(φ(θ))                   through the inner loop

Shapes: `tasks` is n, `steps` is k. Symbols: θ is `params`, φ is `adapted.params`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from reptile_jax import _checks, _optimizers
from reptile_jax._devices import Mesh, as_arrays, automatic, in_auto_axes, jitted, owned
from reptile_jax._meta_batch import Inner, mean_over_tasks, norm, select
from reptile_jax._types import (
    Adapted,
    Batches,
    InnerState,
    LossFn,
    MetaBatch,
    MetaGradient,
    MetaInfo,
    MetaLearner,
    MetaState,
    Optimizer,
    Params,
    TaskGradient,
)
from reptile_jax.tasks.repeated import scan_batches


def inner_loop(
    loss_fn: LossFn,
    optimizer: Optimizer,
    params: Params,
    batches: Batches,
    opt_state: Any = None,
    model_state: Any = None,
) -> Adapted:
    """Adapts `params` to one task: U_τ^k(θ), one optimiser step per mini-batch, as one scan.

    Args:
      loss_fn: `(params, batch) -> scalar`, or `(scalar, aux)`. With a model state `(params,
        model_state, batch) -> (scalar, model_state)`, or with aux as a third. A key for dropout and
        the like is a leaf of the batch.
      optimizer: `optax.sgd` in the paper's analysis, Adam with β1 = 0 in its experiments.
      params: θ, a pytree of floating-point arrays.
      batches: leaves `[steps, batch, ...]`, or `Repeated`; where `Masked`, empty ones are skipped.
      opt_state: where the optimiser starts; by default its first state.
      model_state: a pytree that the loss takes and returns, such as running averages.

    Raises a ValueError for no steps, leading axes that disagree or a loss that is not a scalar, a
    TypeError for parameters that are not floating-point.
    """
    loss_of = _checks.check_inner_loop(loss_fn, optimizer, params, batches)
    loss_and_gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(carry, batch):
        params, opt_state, model_state = carry
        (loss, (after, aux)), grads = loss_and_gradient(params, model_state, batch)
        at = lambda params: loss_of(params, model_state, batch)[0]
        params, opt_state = _optimizers.step(optimizer, grads, opt_state, params, loss, at)
        return (params, opt_state, after), (loss, aux)

    start = params, optimizer.init(params) if opt_state is None else opt_state, model_state
    (params, opt_state, model_state), (losses, aux) = scan_batches(step, start, batches)
    return Adapted(params, opt_state, losses, model_state, aux)


def reptile(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """θ − φ, the way back from where the inner loop went. Uses no query set."""
    _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task, model_state=None):
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state, model_state)
        return TaskGradient(jax.tree.map(jnp.subtract, params, adapted.params), *adapted[1:])

    return MetaGradient(inner_optimizer.init, compute)


def fomaml(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """First-order MAML: the query loss's gradient at φ, taken as if it were at θ (section 2)."""
    loss_of = _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task, model_state=None):
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state, model_state)
        query = _checks.query_of(task)
        gradient, _ = jax.grad(loss_of, has_aux=True)(adapted.params, adapted.model_state, query)
        return TaskGradient(gradient, *adapted[1:])

    return MetaGradient(inner_optimizer.init, compute)


def maml(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """MAML (Finn, Abbeel & Levine 2017): the query loss differentiated through the inner loop."""
    loss_of = _checks.check_inner(loss_fn, inner_optimizer)
    adapt = partial(inner_loop, loss_fn, inner_optimizer)

    def compute(params, opt_state, task, model_state=None):
        def query_loss(params):
            adapted = adapt(params, task.support, opt_state, model_state)
            loss, _ = loss_of(adapted.params, adapted.model_state, _checks.query_of(task))
            return loss, adapted

        gradient, adapted = jax.grad(query_loss, has_aux=True)(params)
        return TaskGradient(gradient, *adapted[1:])

    return MetaGradient(inner_optimizer.init, compute)


@in_auto_axes
def meta_step(
    meta_gradient: MetaGradient,
    meta_optimizer: Optimizer,
    state: MetaState,
    tasks: MetaBatch,
    *,
    inner_opt_state: InnerState = "reset",
    model_state: InnerState = "average",
    tasks_at_once: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[MetaState, MetaInfo]:
    """One meta step over a meta-batch of tasks: the last line of the algorithm. Pure.

    `tasks` is a `Task` with leaves led by `[tasks]`: support `[tasks, steps, batch, ...]`. The mean
    leaves out tasks with a loss, a gradient, a weight or, unless it is reset, a state that is not
    finite, and those with a weight that is not positive; if none is left, only `state.step`
    changes. Options are those of `meta_learner`; leading axes that disagree, or a missing query
    set, raise a ValueError.
    """
    policies, own = Inner(inner_opt_state, model_state), (meta_gradient, meta_optimizer)
    _checks.check_meta_step(*own, state, tasks, *policies, tasks_at_once, mesh)
    mean = mean_over_tasks(meta_gradient.compute, state, tasks, policies, tasks_at_once, mesh)
    params, opt_state = _optimizers.outer_step(meta_optimizer, mean.gradient, mean.loss, state)
    moved = MetaState(params, opt_state, mean.inner.opt_state, state.step, mean.inner.model_state)
    state = select(mean.weight > 0, moved, state)._replace(step=state.step + 1)
    return state, MetaInfo(mean.losses, mean.finite, norm(mean.gradient), mean.aux)


def meta_learner(
    meta_gradient: MetaGradient,
    meta_optimizer: Optimizer,
    *,
    inner_opt_state: InnerState = "reset",
    model_state: InnerState = "average",
    tasks_at_once: int | None = None,
    mesh: Mesh | None = None,
    donate: bool = True,
) -> MetaLearner:
    """Makes a meta-learner. Build it once: each has a compiled program of its own.

    Args:
      meta_optimizer: takes the mean meta-gradient over the tasks. `optax.sgd(ε)` is the published
        update; `optax.sgd(optax.linear_schedule(ε, 0, n))` anneals it.
      inner_opt_state: where each task's inner optimiser starts. "reset": at its first state.
        "average": at the mean of the last meta step's final states. "carry": at the final state of
        the task before it, across meta steps too, as in the paper's released code; tasks then run
        one after another. With one task per meta step, the last two are the same.
      model_state: the same of a model's state, whose first is what `init` is given.
      tasks_at_once: how many tasks run side by side under `vmap`, on each device; the rest follow
        in a scan, with the same result to rounding. By default one (CPU), all (GPU), some (TPU).
      mesh: from `task_mesh()`, or any mesh with an axis "tasks": divides each meta-batch, with the
        same result to rounding. Over its other axes a state stays divided as it comes.
      donate: `step` reuses the memory of the state that it takes, which cannot be used afterwards.

    Returns `MetaLearner(init, step)`: `init(params)`, or `init(params, model_state)`, copies them;
    `step` is jitted `meta_step`. Raises a TypeError for what is no meta-gradient, optimiser or
    mesh, a ValueError for options out of range, or "carry" side by side or on many devices.
    """
    how = {"inner_opt_state": inner_opt_state, "model_state": model_state}
    how |= {"tasks_at_once": tasks_at_once, "mesh": mesh}
    how = _checks.check_meta_learner(meta_gradient, meta_optimizer, **how)

    def init(params: Params, model_state: Any = None) -> MetaState:
        _checks.check_start(params, model_state)
        params, model_state = as_arrays((params, model_state))
        inner = None if inner_opt_state == "reset" else meta_gradient.init(params)
        first = MetaState(params, meta_optimizer.init(params), inner, jnp.int32(0), model_state)
        return owned(first, automatic(mesh))

    step = partial(meta_step, meta_gradient, meta_optimizer, **how)
    return MetaLearner(init, jitted(step, mesh, donate=donate), automatic(mesh))
