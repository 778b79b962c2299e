"""Checks of what people give to the algorithm's own functions, before anything is computed.

Each says what was given, what was expected, and what to do. They belong to the public functions:
what those call inside checks nothing again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax._devices import AXIS, local_parts, parts
from reptile_jax._losses import with_state
from reptile_jax._state_checks import check_own, check_usable
from reptile_jax._types import (
    Batches,
    Draws,
    InnerState,
    MetaGradient,
    MetaLearner,
    MetaState,
    Params,
    Repeated,
    Task,
    TaskDistribution,
    TaskState,
)
from reptile_jax._values import check_integers, check_key, check_leading_axis, kind, same_shapes


def check_inner_loop(loss_fn: Any, optimizer: Any, params: Params, batches: Batches) -> Callable:
    """The loss function `with_state`; raises for what `inner_loop` cannot run on."""
    check_params(params)
    if not isinstance(batches, TaskState):
        check_steps(batches, "`batches`")
    return check_inner(loss_fn, optimizer)


def check_inner(loss_fn: Any, optimizer: Any) -> Callable:
    """The loss function `with_state`; a TypeError for what is no loss or no optimiser."""
    _check_type(loss_fn, Callable, "loss_fn is a function (params, batch) -> scalar")
    check_optimizer(optimizer)
    return with_state(loss_fn)


def check_optimizer(optimizer: Any) -> None:
    """Raises a TypeError for what is no Optax optimiser."""
    optimizers = optax.GradientTransformation | optax.MultiSteps
    _check_type(optimizer, optimizers, "an optimiser is one of Optax's, like optax.sgd(0.1)")


def check_start(params: Params, *states: Any) -> None:
    """Raises unless these are parameters, and no array of theirs or of the states was donated."""
    check_params(params)
    check_usable((params, *states))


def check_params(params: Params) -> None:
    """Raises for what is not a pytree of floating-point arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("`params` has no arrays: there is nothing to learn.")
    for path, leaf in leaves:
        number = isinstance(leaf, int | float | complex)
        dtype = jnp.result_type(leaf) if number else getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            cure = "give its real and imaginary parts, and join them by jax.lax.complex in the loss"
        else:
            cure = "keep what is not learned out of `params`: in the loss, a batch or a model state"
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"parameters are floating-point, but params{jax.tree_util.keystr(path)} is "
                f"{dtype or type(leaf).__name__}: {cure}."
            )


def query_of(task: Task) -> Any:
    """The task's query set, or a ValueError if it has none."""
    if task.query is None:
        raise ValueError(
            "fomaml and maml need a query set: give Task(support, query), or use a meta-gradient "
            "that does without, such as reptile."
        )
    return task.query


def check_meta_learner(meta_gradient: Any, meta_optimizer: Any, **how: Any) -> dict[str, Any]:
    """`how`, as in `check_policy`, in Python's numbers; raises for what makes no meta-learner."""
    said = "a meta-gradient is made by reptile(...) and the like"
    _check_type(meta_gradient, MetaGradient, said)
    check_optimizer(meta_optimizer)
    check_policy(**how)
    at_once = how["tasks_at_once"]
    return how | {"tasks_at_once": None if at_once is None else int(at_once)}


def check_policy(inner_opt_state: Any, model_state: Any, tasks_at_once: Any, mesh: Any) -> None:
    """Raises for options of a meta step that do not exist, or do not go together."""
    policies = get_args(InnerState)
    for name, policy in (("inner_opt_state", inner_opt_state), ("model_state", model_state)):
        if not isinstance(policy, str) or policy not in policies:
            raise ValueError(f"{name} is one of {policies}, got {policy!r}.")
    if tasks_at_once is not None:
        check_integers(tasks_at_once=tasks_at_once)
    check_mesh(mesh)
    devices = parts(mesh)
    carries = "carry" in (inner_opt_state, model_state)
    if carries and (tasks_at_once not in (None, 1) or devices > 1):
        given = f"tasks_at_once={tasks_at_once}" if devices == 1 else f"a mesh of {devices} parts"
        raise ValueError(
            f'"carry" runs one task after another, on one device, which {given} does not: use '
            '"average".'
        )


def check_mesh(mesh: Any) -> None:
    """Raises for a mesh without the axis that tasks are divided over."""
    said = "a mesh is made by reptile_jax.task_mesh(devices)"
    _check_type(mesh, jax.sharding.Mesh | None, said)
    if mesh is not None and AXIS not in mesh.axis_names:
        raise ValueError(
            f'the mesh has the axes {mesh.axis_names}, but needs one named "{AXIS}": make it with '
            "reptile_jax.task_mesh()."
        )


def check_meta_step(
    meta_gradient: Any, meta_optimizer: Any, state: Any, tasks: Any, inner_opt_state: Any, *how: Any
) -> None:
    """Raises unless these are a state and a meta-batch; `how` is as in `check_policy`."""
    check_policy(inner_opt_state, *how)
    _check_type(state, MetaState, "the state is what init(params) gives")
    check_params(state.params)
    check_own(meta_optimizer, state, "opt_state", "meta-optimiser")
    if inner_opt_state != "reset":  # else it is left alone
        check_own(meta_gradient, state, "inner_opt_state", "inner optimiser")
    if isinstance(tasks, Draws):  # `meta_steps` makes and checks them
        return
    _check_type(tasks, Task, "tasks are a Task(support, query)")
    check_stacked(tasks)
    if isinstance(tasks.support, TaskState):
        check_ended(meta_gradient, state, tasks.support)


def check_stacked(tasks: Task) -> int:
    """The number of tasks of a meta-batch, or an error that says what is wrong with its leaves."""
    num_tasks = check_leading_axis(tasks, "tasks", "the meta-batch")
    support = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tasks.support
    )
    if not isinstance(support, TaskState):
        check_steps(support, "each task's support set")
    if tasks.weight is not None and jnp.shape(tasks.weight) != (num_tasks,):
        raise ValueError(
            f"weights are one for each task, [{num_tasks}], got {list(jnp.shape(tasks.weight))}."
        )
    return num_tasks


def check_ended(meta_gradient: Any, state: MetaState, ended: TaskState) -> None:
    """Raises a ValueError unless tasks that were streamed, `[tasks, ...]`, are of this learner."""
    task = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ended)
    check_own(meta_gradient, task, "opt_state", "inner optimiser")
    for part in ("params", "model_state"):
        given, own = getattr(task, part), getattr(state, part)
        if not same_shapes(given, own):
            raise ValueError(
                f"the tasks are of another learner: their {part} is {kind(given)!s:.200}, but that "
                f"of this state is {kind(own)!s:.200}. Start them from it, with rj.start_task."
            )


def check_stream(loss_fn: Any, optimizer: Any, state: Any, batches: Any) -> None:
    """Raises for what `stream` cannot run on."""
    check_inner(loss_fn, optimizer)
    _check_type(state, TaskState, "the state of a task is what rj.start_task gives")
    check_params(state.params)
    check_usable(state, donated=True)
    made_by = "rj.start_task(optimizer, params)"
    check_own(optimizer, state, "opt_state", "optimiser", "optimiser", made_by)
    said = "mini-batches come from an iterator, which iter(...) makes of a list or a data loader"
    _check_type(batches, Iterator, said)


def check_streamed(tasks: Sequence[Task], mesh: Any) -> None:
    """Raises unless all tasks are of one kind, with a `TaskState` each, and fit the mesh."""
    check_mesh(mesh)
    for task in tasks:
        _check_type(task.support, TaskState, "a task that was streamed is what rj.stream gives")
    if not tasks or any(kind(task) != kind(tasks[0]) for task in tasks):
        raise ValueError(
            f"got {len(tasks)} tasks: give at least one, and all of the same structure, shapes and "
            "dtypes; if one has a query set or a weight, each of them."
        )
    here = parts(mesh and local_parts(mesh))
    if len(tasks) % here:
        raise ValueError(
            f'got {len(tasks)} tasks for the {here} parts of the mesh\'s axis "{AXIS}" that this '
            "process has: give as many, or a multiple."
        )


def check_what_to_score(tasks: Any, key: Any, num_tasks: Any) -> int:
    """How many tasks `evaluate` scores: those given, or as many as it is to draw."""
    given = isinstance(tasks, Task)
    if not given:
        check_distribution(tasks)
    how = {"key": key, "num_tasks": num_tasks}
    if odd := " and ".join(name for name, value in how.items() if (value is None) != given):
        raise TypeError(
            f"tasks that are given, as a Task, are scored once each: leave out {odd}."
            if given
            else f"a distribution's tasks are drawn: give {odd} as well."
        )
    if given:
        return check_stacked(tasks)
    check_key(key)
    check_integers(num_tasks=num_tasks)
    return int(num_tasks)


def check_training(learner: Any, state: Any, distribution: Any, key: Any) -> None:
    """Raises for what `train` and `meta_steps` cannot run on."""
    check_key(key)
    check_distribution(distribution)
    _check_type(learner, MetaLearner, "a learner is made by meta_learner(...)")
    _check_type(state, MetaState, "the state is what learner.init(params) gives")
    check_usable(state, donated=True)


def check_adaptation(
    loss_fn: Any, optimizer: Any, params: Any, opt_state: Any, **functions: Any
) -> None:
    """Raises for what `evaluate` cannot adapt and score with."""
    check_inner(loss_fn, optimizer)
    for name, function in functions.items():
        _check_type(function, Callable, f"{name} is a function")
    check_start(params, opt_state)
    if opt_state is not None:
        state = TaskState._make((params, opt_state, 0, 0, None))
        check_own(optimizer, state, "opt_state", "optimiser", "optimiser", "optimizer.init(params)")


def check_distribution(distribution: Any) -> None:
    """Raises a TypeError for what has no `sample(key) -> Task`, or is no pytree of arrays."""
    if isinstance(distribution, type) or not isinstance(distribution, TaskDistribution):
        given = getattr(distribution, "__name__", type(distribution).__name__)
        cure = ""
        if isinstance(distribution, Task):
            cure = ": learner.step and rj.evaluate take a Task"
        elif isinstance(distribution, list | tuple):
            cure = ": rj.tasks.stack_tasks makes one Task of many"
        raise TypeError(f"a task distribution has a method sample(key) -> Task, got {given}{cure}.")
    for leaf in jax.tree.leaves(distribution):
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "dtype"):
            what = "" if leaf is distribution else f", and its leaves are arrays, not {leaf!r:.80}"
            raise TypeError(
                f"a task distribution is a pytree{what}: register {type(distribution).__name__}, "
                "with jax.tree_util.register_dataclass for one, its sizes as static fields."
            )


def check_task(task: Any) -> Task:
    """What a distribution has drawn, or an error at tracing if that is no task."""
    _check_type(task, Task, "sample(key) returns a Task")
    shapes = jax.tree.map(jnp.shape, task.weight)
    if shapes not in (None, ()):
        raise ValueError(f"a drawn task's weight is one number, got shape {shapes}.")
    return task


def _check_type(value: Any, kind: Any, said: str) -> None:
    """Raises a TypeError for what is not of that kind; `said` is what is expected."""
    if not isinstance(value, kind):
        is_short = isinstance(value, int | float | str | None)
        given = repr(value) if is_short else getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{said}, got {given:.80}.")


def check_steps(batches: Batches, what: str) -> int:
    """The number of inner steps, at least 1; else an error as of `check_leading_axis`."""
    if isinstance(batches, TaskState):
        raise ValueError(
            f"{what} is a task that was streamed: its mini-batches are gone, and only where it "
            "ended is known. rj.reptile needs no more, nor does rj.fomaml with a query set."
        )
    if isinstance(batches, Repeated):
        (steps,) = check_integers(steps=batches.steps)
        led = lambda x: np.empty((steps, 0)) if hasattr(x, "shape") else x
        batches = jax.tree.map(led, batches.examples)
    return check_leading_axis(batches, "steps", what)
