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

Shapes: `tasks` is n, the meta-batch; `steps` is k, the inner steps. Symbols: θ is `params`, φ is
`adapted.params`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reptile_jax import _checks
from reptile_jax._devices import Mesh, automatic, owned
from reptile_jax._meta_batch import mean_over_tasks, where
from reptile_jax._types import (
    Adapted,
    Batches,
    InnerOptState,
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
from reptile_jax.tasks.padding import unless_empty


def inner_loop(
    loss_fn: LossFn, optimizer: Optimizer, params: Params, batches: Batches, opt_state: Any = None
) -> Adapted:
    """Adapts `params` to one task: U_τ^k(θ), one optimiser step per mini-batch, as one scan.

    Args:
      loss_fn: `(params, batch) -> scalar`. A key for dropout and the like is a leaf of the batch.
      optimizer: the inner optimiser; `optax.sgd` is the paper's analysis, Adam with β1 = 0 its
        experiments.
      params: θ, a pytree of floating-point arrays.
      batches: a pytree, leaves `[steps, batch, ...]`; where `Masked`, empty ones are skipped.
      opt_state: where the optimiser starts; by default its first state.

    Raises:
      ValueError: for no steps, leading axes that disagree, or a loss that is not a scalar.
      TypeError: for parameters that are not floating-point.
    """
    _checks.check_inner_loop(loss_fn, optimizer, params, batches)

    def step(carry, batch):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(_checks.scalar(loss_fn))(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    start = params, optimizer.init(params) if opt_state is None else opt_state
    (adapted, opt_state), losses = jax.lax.scan(unless_empty(step), start, batches)
    return Adapted(adapted, opt_state, losses)


def reptile(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """θ − φ: where the inner loop started minus where it ended. Uses no query set."""
    _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task):
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
        delta = jax.tree.map(jnp.subtract, params, adapted.params)
        return TaskGradient(delta, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, compute)


def fomaml(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """First-order MAML: the query loss's gradient at φ, taken as if it were at θ (section 2)."""
    _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task):
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
        gradient = jax.grad(_checks.scalar(loss_fn))(adapted.params, _checks.query_of(task))
        return TaskGradient(gradient, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, compute)


def maml(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """MAML (Finn, Abbeel & Levine 2017): the query loss differentiated through the inner loop."""
    _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task):
        def query_loss(params):
            adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
            return _checks.scalar(loss_fn)(adapted.params, _checks.query_of(task)), adapted

        gradient, adapted = jax.grad(query_loss, has_aux=True)(params)
        return TaskGradient(gradient, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, compute)


def meta_step(
    meta_gradient: MetaGradient,
    meta_optimizer: Optimizer,
    state: MetaState,
    tasks: MetaBatch,
    *,
    inner_opt_state: InnerOptState = "reset",
    tasks_at_once: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[MetaState, MetaInfo]:
    """One meta step over a meta-batch of tasks: the last line of the algorithm. Pure.

    `tasks` is a `Task` with leaves led by `[tasks]`: support `[tasks, steps, batch, ...]`. The mean
    leaves out tasks with a loss or gradient that is not finite; if none is left, only `state.step`
    changes. The options are those of `meta_learner`. Besides its errors, a ValueError is raised for
    leading axes that disagree and, with FOMAML and MAML, for tasks without a query set.
    """
    _checks.check_meta_step(state, tasks)
    _checks.check_policy(inner_opt_state, tasks_at_once, mesh)
    start = None if inner_opt_state == "reset" else state.inner_opt_state
    carry = inner_opt_state == "carry"
    mean = mean_over_tasks(
        meta_gradient.compute, state.params, start, tasks, tasks_at_once, carry, automatic(mesh)
    )
    updates, opt_state = meta_optimizer.update(mean.gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    kept = state.inner_opt_state if start is None else mean.opt_state
    moved = MetaState(params, opt_state, kept, state.step)
    state = where(mean.weight > 0, moved, state)._replace(step=state.step + 1)
    return state, MetaInfo(mean.losses, mean.finite, optax.tree.norm(mean.gradient))


def meta_learner(
    meta_gradient: MetaGradient,
    meta_optimizer: Optimizer,
    *,
    inner_opt_state: InnerOptState = "reset",
    tasks_at_once: int | None = None,
    mesh: Mesh | None = None,
    donate: bool = True,
) -> MetaLearner:
    """Makes a meta-learner of a meta-gradient and a meta-optimiser.

    Build it once: each has a compiled program of its own.

    Args:
      meta_gradient: `reptile(...)`, `fomaml(...)`, `maml(...)`, or your own.
      meta_optimizer: takes the mean meta-gradient over the tasks. `optax.sgd(ε)` is the published
        update; `optax.sgd(optax.linear_schedule(ε, 0, n))` anneals it.
      inner_opt_state: where each task's inner optimiser starts. "reset": at its first state.
        "average": at the mean of the last meta step's final states. "carry": at the final state of
        the task before it, across meta steps too, as in the paper's released code; tasks then run
        one after another. With one task per meta step, the last two are the same.
      tasks_at_once: how many tasks run side by side under `vmap`, on each device; the rest follow
        in a scan, with the same result to rounding. By default one on a CPU, else all.
      mesh: made by `task_mesh()`, or any with one axis, named "tasks". It divides each meta-batch
        over its devices, with the same result to rounding. States are then on all of them.
      donate: `step` reuses the memory of the state that it takes, which cannot be used afterwards.
        Write `state, info = learner.step(state, tasks)`.

    Returns:
      `MetaLearner(init, step)`. `init` copies the parameters; `step` is jitted `meta_step`.

    Raises:
      TypeError: for an argument that is not a meta-gradient, an optimiser or a mesh.
      ValueError: for options out of range, or "carry" with tasks side by side or on many devices.
    """
    how = {"inner_opt_state": inner_opt_state, "tasks_at_once": tasks_at_once, "mesh": mesh}
    _checks.check_meta_learner(meta_gradient, meta_optimizer, **how)

    def init(params: Params) -> MetaState:
        _checks.check_params(params)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
        inner = None if inner_opt_state == "reset" else meta_gradient.init(params)
        first = MetaState(params, meta_optimizer.init(params), inner, jnp.zeros((), jnp.int32))
        return owned(first, automatic(mesh))

    step = partial(meta_step, meta_gradient, meta_optimizer, **how)
    return MetaLearner(init, jax.jit(step, donate_argnums=0 if donate else ()), automatic(mesh))
