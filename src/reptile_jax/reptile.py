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

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from reptile_jax.checks import (
    LossFn,
    check_inner,
    check_optimizer,
    check_params,
    check_query,
    scalar,
)
from reptile_jax.devices import Mesh, checked, replicate
from reptile_jax.padding import unless_empty
from reptile_jax.task_axis import Params, TaskGradient, mean_over_tasks, where
from reptile_jax.tasks import Batches, Draws, Task, check_integers, check_leading_axis

InnerState: TypeAlias = Literal["fresh", "averaged", "carried"]


class Adapted(NamedTuple):
    """What an inner loop leaves."""

    params: Params  # φ
    opt_state: optax.OptState  # the inner optimiser's
    losses: jax.Array  # [steps], each before its step


class MetaGradient(NamedTuple):
    """A pair of pure functions that make a meta-gradient of one task.

    `init(params)` is the inner optimiser's first state. `estimate(params, opt_state, task)` is the
    meta-gradient at `params` when the inner optimiser starts from `opt_state`, or afresh if that is
    None. Write your own sibling as such a pair.
    """

    init: Callable[[Params], optax.OptState]
    estimate: Callable[[Params, optax.OptState | None, Task], TaskGradient]


class MetaState(NamedTuple):
    """All that evolves in meta-training: what a checkpoint holds."""

    params: Params  # θ
    opt_state: optax.OptState  # the meta-optimiser's
    inner_opt_state: optax.OptState | None  # what inner loops start from; None when fresh
    step: jax.Array  # [] int32


class MetaInfo(NamedTuple):
    """What a meta step reports; the next one needs none of it."""

    losses: jax.Array  # [tasks, steps]
    finite: jax.Array  # [tasks] bool: tasks that are not were left out of the mean
    gradient_norm: jax.Array  # []


class MetaLearner(NamedTuple):
    """A pair of functions, as in `optax.GradientTransformation`, and where they run."""

    init: Callable[[Params], MetaState]
    step: Callable[[MetaState, Task | Draws], tuple[MetaState, MetaInfo]]
    mesh: Mesh | None = None  # the devices that the tasks are divided over, if more than one


def inner_loop(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    batches: Batches,
    opt_state: optax.OptState | None = None,
) -> Adapted:
    """Adapts `params` to one task: U_τ^k(θ), one optimiser step per mini-batch, as one scan.

    Args:
      loss_fn: `(params, batch) -> scalar`. A key for dropout and the like is a leaf of the batch.
      optimizer: the inner optimiser; `optax.sgd` is the paper's analysis, Adam with β1 = 0 its
        experiments.
      params: θ, a pytree of floating-point arrays.
      batches: a pytree, leaves `[steps, batch, ...]`; where `Masked`, empty ones are skipped.
      opt_state: where the optimiser starts; afresh by default.

    Raises:
      ValueError: for no steps, for leading axes that disagree, or a loss that is not a scalar.
      TypeError: for parameters that are not floating-point.
    """
    check_inner(loss_fn, optimizer)
    check_params(params)
    check_leading_axis(batches, "steps", "`batches`")

    def step(carry, batch):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(scalar(loss_fn))(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    start = params, optimizer.init(params) if opt_state is None else opt_state
    (adapted, opt_state), losses = jax.lax.scan(unless_empty(step), start, batches)
    return Adapted(adapted, opt_state, losses)


def reptile(loss_fn: LossFn, inner_optimizer: optax.GradientTransformation) -> MetaGradient:
    """θ − φ, the way back from where the inner loop went. Uses no query set.

    Raises:
      TypeError: for what is no loss function or no optimiser.
    """
    check_inner(loss_fn, inner_optimizer)

    def estimate(params, opt_state, task):
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
        delta = jax.tree.map(jnp.subtract, params, adapted.params)
        return TaskGradient(delta, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, estimate)


def fomaml(loss_fn: LossFn, inner_optimizer: optax.GradientTransformation) -> MetaGradient:
    """First-order MAML: the query loss's gradient at φ, taken as if it were at θ (section 4).

    Raises:
      TypeError: for what is no loss function or no optimiser.
      ValueError: in a meta step, for tasks without a query set.
    """
    check_inner(loss_fn, inner_optimizer)

    def estimate(params, opt_state, task):
        check_query(task, "fomaml")
        adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
        gradient = jax.grad(scalar(loss_fn))(adapted.params, task.query)
        return TaskGradient(gradient, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, estimate)


def maml(loss_fn: LossFn, inner_optimizer: optax.GradientTransformation) -> MetaGradient:
    """MAML (Finn, Abbeel & Levine 2017): the query loss differentiated through the inner loop.

    Raises:
      TypeError: for what is no loss function or no optimiser.
      ValueError: in a meta step, for tasks without a query set.
    """
    check_inner(loss_fn, inner_optimizer)

    def estimate(params, opt_state, task):
        check_query(task, "maml")

        def query_loss(params):
            adapted = inner_loop(loss_fn, inner_optimizer, params, task.support, opt_state)
            return scalar(loss_fn)(adapted.params, task.query), adapted

        gradient, adapted = jax.grad(query_loss, has_aux=True)(params)
        return TaskGradient(gradient, adapted.opt_state, adapted.losses)

    return MetaGradient(inner_optimizer.init, estimate)


def meta_learner(
    meta_gradient: MetaGradient,
    meta_optimizer: optax.GradientTransformation,
    *,
    inner_state: InnerState = "fresh",
    tasks_at_once: int | None = None,
    mesh: Mesh | None = None,
    donate: bool = True,
) -> MetaLearner:
    """Makes a meta-learner of a meta-gradient and a meta-optimiser.

    `optax.sgd(ε)` is the published update; `optax.sgd(optax.linear_schedule(ε, 0, n))` anneals it.
    Build the learner once: each has a compiled program of its own.

    Args:
      meta_gradient: `reptile(...)`, `fomaml(...)`, `maml(...)`, or your own.
      meta_optimizer: any Optax optimiser; it is given the mean meta-gradient over the tasks.
      inner_state: where each task's inner optimiser starts. "fresh": anew. "averaged": from one
        state, the mean of what the last meta step's tasks ended with. "carried": from what the task
        before it ended with, across meta steps too, which is what the paper's released code does
        and makes tasks run one after another. With one task a meta step the last two are the same.
      tasks_at_once: how many tasks run side by side under `vmap`; the rest follow in a scan, with
        the same result to rounding. By default one on a CPU, all of them on a GPU or TPU. With a
        mesh these are the tasks of each device.
      mesh: divides each meta-batch over many devices, with the same result to rounding: a mesh with
        one axis, named "tasks", as `devices.task_mesh()` makes it. States are then on all of them.
      donate: let `step` reuse its argument's memory. A state is then used up by the step that takes
        it, as always when written `state, info = learner.step(state, tasks)`.

    Returns:
      `MetaLearner(init, step)`. `init` copies the parameters; `step` is jitted `meta_step`.

    Raises:
      TypeError: for what is no meta-gradient, no optimiser or no mesh.
      ValueError: for an unknown `inner_state`, for `tasks_at_once` below 1, for a mesh with other
        axes, and where "carried" is to run tasks side by side or on several devices.
    """
    if not isinstance(inner_state, str) or inner_state not in get_args(InnerState):
        raise ValueError(f"inner_state is one of {get_args(InnerState)}, got {inner_state!r}.")
    if not isinstance(meta_gradient, MetaGradient):
        given = getattr(meta_gradient, "__name__", type(meta_gradient).__name__)
        raise TypeError(f"a meta-gradient is made by reptile(...) and the like, got {given}.")
    check_optimizer(meta_optimizer)
    if tasks_at_once is not None:
        check_integers(tasks_at_once=tasks_at_once)
    if inner_state == "carried" and tasks_at_once not in (None, 1):
        raise ValueError(
            'inner_state="carried" runs one task after another, so tasks_at_once cannot be '
            f'{tasks_at_once}: use "averaged" to run tasks side by side.'
        )
    mesh = checked(mesh)
    if inner_state == "carried" and mesh is not None and mesh.size > 1:
        raise ValueError(
            'inner_state="carried" runs one task after another, so a mesh of '
            f'{mesh.size} devices cannot share them: use "averaged", or one device.'
        )

    def init(params: Params) -> MetaState:
        check_params(params)
        params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), params)
        inner = None if inner_state == "fresh" else meta_gradient.init(params)
        state = MetaState(params, meta_optimizer.init(params), inner, jnp.zeros((), jnp.int32))
        # Some optimisers keep the parameters themselves; a buffer that is donated, as `train` does
        # with any learner's, has one owner.
        return replicate(jax.tree.map(jnp.copy, state), mesh)

    step = functools.partial(
        meta_step,
        meta_gradient,
        meta_optimizer,
        tasks_at_once=1 if inner_state == "carried" else tasks_at_once,
        carry_inner_state=inner_state == "carried",
        mesh=mesh,
    )
    return MetaLearner(init, jax.jit(step, donate_argnums=0 if donate else ()), mesh)


def meta_step(
    meta_gradient: MetaGradient,
    meta_optimizer: optax.GradientTransformation,
    state: MetaState,
    tasks: Task | Draws,
    *,
    tasks_at_once: int | None = None,
    carry_inner_state: bool = False,
    mesh: Mesh | None = None,
) -> tuple[MetaState, MetaInfo]:
    """One meta step over a meta-batch of tasks: the last line of the algorithm. Pure.

    A task with a loss or gradient that is not finite is left out of the mean; if none is left, only
    `state.step` moves. `meta_learner` says what the options mean.

    Args:
      tasks: a `Task` whose leaves are led by `[tasks]`, support `[tasks, steps, batch, ...]`; or
        `Draws`.

    Raises:
      TypeError: for `tasks` that are neither.
      ValueError: for no tasks, no steps, or leading axes that disagree.
    """
    if not isinstance(state, MetaState):
        raise TypeError(f"the state is what init(params) gives, got {type(state).__name__}.")
    if not isinstance(tasks, Task | Draws):
        raise TypeError(f"tasks are a Task(support, query) or Draws, got {type(tasks).__name__}.")
    mean = mean_over_tasks(
        meta_gradient.estimate,
        state.params,
        state.inner_opt_state,
        tasks,
        at_once=tasks_at_once,
        carry=carry_inner_state,
        mesh=mesh,
    )
    updates, opt_state = meta_optimizer.update(mean.gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    moved = MetaState(params, opt_state, mean.opt_state, state.step)
    state = where(mean.weight > 0, moved, state)._replace(step=state.step + 1)
    return state, MetaInfo(mean.losses, mean.finite, optax.tree.norm(mean.gradient))
