"""What people pass in, checked once, before anything is computed; inside, nothing is checked again.

Each check says what was given, what was expected, and what to do. Those of the algorithm's own
functions come first, then what they are made of. Nothing here changes a value.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax._devices import AXIS, local_parts, parts
from reptile_jax._state_checks import check_own, check_usable
from reptile_jax._types import (
    Batches,
    Draws,
    InnerState,
    LossFn,
    MetaGradient,
    MetaLearner,
    MetaState,
    ModelState,
    Params,
    Repeated,
    Task,
    TaskDistribution,
    TaskState,
)


def check_inner_loop(loss_fn: Any, optimizer: Any, params: Params, batches: Batches) -> Callable:
    """The loss function `with_state`; raises for what `inner_loop` cannot run on."""
    check_params(params)
    if not isinstance(batches, TaskState):
        check_steps(batches, "`batches`")
    return check_inner(loss_fn, optimizer)


def check_inner(loss_fn: Any, optimizer: Any) -> Callable:
    """The loss function `with_state`; a TypeError for what is no loss or no optimiser."""
    _check_kind(loss_fn, Callable, "loss_fn is a function (params, batch) -> scalar")
    check_optimizer(optimizer)
    return with_state(loss_fn)


def check_optimizer(optimizer: Any) -> None:
    """Raises a TypeError for what is no Optax optimiser."""
    kind = optax.GradientTransformation | optax.MultiSteps
    _check_kind(optimizer, kind, "an optimiser is one of Optax's, like optax.sgd(0.1)")


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


def with_state(loss_fn: LossFn) -> Callable[[Params, ModelState, Any], tuple[jax.Array, Any]]:
    """`(params, model_state, batch) -> (loss, (model_state, aux))`, whatever `loss_fn` returns.

    Without a model state, `model_state` is None. What the loss returns is checked at tracing.
    """

    def full(params, model_state, batch):
        given = (params, batch) if model_state is None else (params, model_state, batch)
        # Made anew, objects in these trees belong to this trace: NNX allows only such to change.
        returned = loss_fn(*jax.tree.map(lambda leaf: leaf, given))
        loss, *more = returned if isinstance(returned, tuple) else (returned,)
        most = 1 if model_state is None else 2
        if jax.tree.map(jnp.shape, loss) != () or not most - 1 <= len(more) <= most:
            forms = ("a scalar, or (scalar, aux)", "(scalar, model_state), or with aux as a third")
            raise ValueError(
                f"loss_fn returns {forms[most - 1]}, but gave the shapes "
                f"{jax.tree.map(jnp.shape, returned)}: take the mean over the batch."
            )
        if not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(f"loss_fn returns a floating-point number, got {loss}.")
        state = None if model_state is None else more.pop(0)
        check_same_kind(state, model_state)
        return loss, (state, more[0] if more else None)

    return full


def check_same_kind(state: Any, model_state: Any) -> None:
    """Raises a ValueError if the loss gives back another model state than it was given."""
    kind = lambda tree: jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), tree)
    # Flattened, since a state may be of a class that does not compare: Equinox's.
    if jax.tree.flatten(kind(state)) != jax.tree.flatten(kind(model_state)):
        raise ValueError(
            "loss_fn returns the model state in the form in which it takes it, but it took "
            f"{kind(model_state)} and gave {kind(state)}."
        )


def check_meta_learner(meta_gradient: Any, meta_optimizer: Any, **how: Any) -> dict[str, Any]:
    """`how`, as in `check_policy`, in Python's numbers; raises for what makes no meta-learner."""
    said = "a meta-gradient is made by reptile(...) and the like"
    _check_kind(meta_gradient, MetaGradient, said)
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
    _check_kind(mesh, jax.sharding.Mesh | None, said)
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
    _check_kind(state, MetaState, "the state is what init(params) gives")
    check_params(state.params)
    check_own(meta_optimizer, state, "opt_state", "meta-optimiser")
    if inner_opt_state != "reset":  # else it is left alone
        check_own(meta_gradient, state, "inner_opt_state", "inner optimiser")
    if isinstance(tasks, Draws):  # `meta_steps` makes and checks them
        return
    _check_kind(tasks, Task, "tasks are a Task(support, query)")
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
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    for part in ("params", "model_state"):
        given, own = shapes(getattr(task, part)), shapes(getattr(state, part))
        if jax.tree.flatten(given) != jax.tree.flatten(own):
            raise ValueError(
                f"the tasks are of another learner: their {part} is {given!s:.200}, but that of "
                f"this state is {own!s:.200}. Start them from it, with rj.start_task."
            )


def check_stream(loss_fn: Any, optimizer: Any, state: Any, batches: Any) -> None:
    """Raises for what `stream` cannot run on."""
    check_inner(loss_fn, optimizer)
    _check_kind(state, TaskState, "the state of a task is what rj.start_task gives")
    check_params(state.params)
    check_usable(state, donated=True)
    made_by = "rj.start_task(optimizer, params)"
    check_own(optimizer, state, "opt_state", "optimiser", "optimiser", made_by)
    said = "mini-batches come from an iterator, which iter(...) makes of a list or a data loader"
    _check_kind(batches, Iterator, said)


def check_streamed(tasks: Sequence[Task], mesh: Any) -> None:
    """Raises unless all tasks are of one kind, with a `TaskState` each, and fit the mesh."""
    check_mesh(mesh)
    for task in tasks:
        _check_kind(task.support, TaskState, "a task that was streamed is what rj.stream gives")
    kind = lambda task: jax.tree.flatten(jax.tree.map(lambda x: (jnp.shape(x), x.dtype), task))
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
    _check_kind(learner, MetaLearner, "a learner is made by meta_learner(...)")
    _check_kind(state, MetaState, "the state is what learner.init(params) gives")
    check_usable(state, donated=True)


def check_adaptation(
    loss_fn: Any, optimizer: Any, params: Any, opt_state: Any, **functions: Any
) -> None:
    """Raises for what `evaluate` cannot adapt and score with."""
    check_inner(loss_fn, optimizer)
    for name, function in functions.items():
        _check_kind(function, Callable, f"{name} is a function")
    check_params(params)
    check_usable((params, opt_state))
    first = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    if opt_state is not None and jax.tree.structure(opt_state) != first:
        raise ValueError("`opt_state` is not a state of `optimizer` for these `params`.")


def check_distribution(distribution: Any) -> None:
    """Raises a TypeError for what has no `sample(key) -> Task`, or is no pytree of arrays."""
    if isinstance(distribution, type) or not isinstance(distribution, TaskDistribution):
        given = getattr(distribution, "__name__", type(distribution).__name__)
        cure = ": rj.tasks.stack_tasks makes one Task of many" if given in ("list", "tuple") else ""
        raise TypeError(f"a task distribution has a method sample(key) -> Task, got {given}{cure}.")
    for leaf in jax.tree.leaves(distribution):
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "dtype"):
            what = "" if leaf is distribution else f", and its leaves are arrays, not {leaf!r:.80}"
            raise TypeError(
                f"a task distribution is a pytree{what}: register {type(distribution).__name__}, "
                "with jax.tree_util.register_dataclass for one, its sizes as static fields."
            )


def check_task(task: Any) -> Task:
    """What a distribution has drawn, or a TypeError at tracing if that is no task."""
    _check_kind(task, Task, "sample(key) returns a Task")
    return task


def _check_kind(value: Any, kind: Any, said: str) -> None:
    """Raises a TypeError for what is not of that kind; `said` is what is expected."""
    if not isinstance(value, kind):
        is_short = isinstance(value, int | float | str | None)
        given = repr(value) if is_short else getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{said}, got {given:.80}.")


def check_key(key: Any) -> None:
    """Raises a TypeError for what is not a key, new or old."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (is_new and shape == ()) and not (dtype == jnp.uint32 and len(shape or ()) == 1):
        given = repr(key) if shape is None else f"{dtype}{list(shape)}"
        raise TypeError(f"a key is made by jax.random.key(seed), got {given:.80}.")


def check_integers(least: int = 1, **values: Any) -> list[int]:
    """The values as Python's integers, each at least `least` and within 32 bits.

    NumPy's and JAX's integers are as good, but are no part of a compiled program's name.

    Raises:
      TypeError: for what is not an integer; True and False are not.
      ValueError: for an integer out of range.
    """
    integers = []
    for name, value in values.items():
        is_array = isinstance(value, np.ndarray | jax.Array) and value.shape == ()
        is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        is_integer |= is_array and jnp.issubdtype(value.dtype, jnp.integer)
        if not is_integer or isinstance(value, jax.core.Tracer):
            raise TypeError(f"{name} is an integer, got {value!r:.80}.")
        integers.append(int(value))
        if not least <= integers[-1] < 2**31:
            bound = f"at least {least}" if value < least else "below 2**31"
            raise ValueError(f"{name} is {bound}, got {value}.")
    return integers


def check_range(
    name: str, ends: Any, least: float = -1e9, largest: float = 1e9
) -> tuple[float, float]:
    """Two numbers in order, lowest and highest, within bounds."""
    are_two = isinstance(ends, Sequence) and len(ends) == 2
    are_two = are_two and all(isinstance(x, int | float | np.integer | np.floating) for x in ends)
    if not are_two or not least <= ends[0] <= ends[1] <= largest:
        raise ValueError(
            f"{name} is two numbers, (lowest, highest), between {least:g} and {largest:g}, "
            f"got {ends!r:.80}."
        )
    return float(ends[0]), float(ends[1])


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


def check_leading_axis(tree: Any, axis: str, what: str) -> int:
    """The leaves' common first axis, at least 1; else a ValueError that says what is wrong."""
    sizes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "itself"
        if not isinstance(leaf, int | float | complex) and not hasattr(leaf, "shape"):
            raise TypeError(f"the leaves of {what} are arrays, but {name} is {leaf!r:.80}.")
        sizes[name] = jnp.shape(leaf)[:1]
    if len(set(sizes.values())) == 1 and (size := next(iter(sizes.values()))) > (0,):
        return size[0]
    if not sizes:
        problem = f"{what} has no arrays; every leaf needs a leading axis [{axis}]."
    elif set(sizes.values()) == {(0,)}:
        problem = f"{what} has a leading axis [{axis}] of 0: give at least one of its {axis}."
    else:
        found = ", ".join(f"{name}: {n[0] if n else 'a scalar'}" for name, n in sizes.items())
        problem = (
            f"the leaves of {what} disagree on their leading axis [{axis}]: {found}. Give every "
            "leaf the same one."
        )
    raise ValueError(problem)
