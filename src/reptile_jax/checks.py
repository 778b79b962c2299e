"""What the algorithm is given, checked before anything is computed: parameters, loss, optimiser."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from reptile_jax.task_axis import Params
from reptile_jax.tasks import Task

LossFn: TypeAlias = Callable[[Params, Any], jax.Array]  # (params, batch) -> scalar


def check_params(params: Params) -> None:
    """Raises for what is not a pytree of floating-point arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("`params` holds no arrays: there is nothing to learn.")
    for path, leaf in leaves:
        number = isinstance(leaf, int | float | complex)
        dtype = jnp.result_type(leaf) if number else getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"parameters are floating-point, but params{jax.tree_util.keystr(path)} is "
                f"{dtype or type(leaf).__name__}: cast it, or keep it out of `params`, in the loss "
                "or in the batch."
            )


def check_inner(loss_fn: Any, optimizer: Any) -> None:
    """Raises a TypeError for what is no loss function or no optimiser."""
    if not callable(loss_fn):
        raise TypeError(f"loss_fn is a function (params, batch) -> scalar, got {loss_fn!r:.80}.")
    check_optimizer(optimizer)


def check_optimizer(optimizer: Any) -> None:
    """Raises a TypeError for what is no Optax optimiser."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"an optimiser is one of Optax's, like optax.sgd(0.1), got {type(optimizer).__name__}."
        )


def check_query(task: Task, name: str) -> None:
    """Raises a ValueError for a task without a query set; `name` is what needs one."""
    if task.query is None:
        raise ValueError(
            f"{name} needs a query set: give Task(support, query), or use one that does without, "
            "as reptile."
        )


def scalar(loss_fn: LossFn) -> LossFn:
    """The loss function, with an error at tracing if it returns anything but a number."""

    def scalar_loss(params, batch):
        loss = loss_fn(params, batch)
        shapes = jax.tree.map(jnp.shape, loss)
        if shapes == () and not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            raise TypeError(f"loss_fn returns a floating-point number, got {loss}.")
        if shapes != ():
            raise ValueError(
                f"loss_fn returns a scalar and nothing else, but gave {shapes}: take the mean over "
                "the batch, and return the loss alone."
            )
        return loss

    return scalar_loss
