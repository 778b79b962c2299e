"""The normal form of a loss, whatever a user's own returns."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reptile_jax._types import LossFn, ModelState, Params
from reptile_jax._values import kind


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
        _check_same_kind(state, model_state)
        return loss, (state, more[0] if more else None)

    return full


def _check_same_kind(state: Any, model_state: Any) -> None:
    """Raises a ValueError if the loss gives back another model state than it was given."""
    given, taken = kind(state), kind(model_state)
    if given != taken:
        raise ValueError(
            "loss_fn returns the model state in the form in which it takes it, but it took "
            f"{taken!s} and gave {given!s}."
        )
