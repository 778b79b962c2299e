"""One step of any Optax optimiser, with the extra arguments that some take besides gradients.

They are the loss and its gradient, and the loss as a function, for line searches and curvature.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reptile_jax._types import MetaState, Optimizer, OptState, Params
from reptile_jax._values import same_shapes


def step(
    optimizer: Optimizer,
    grads: Params,
    state: OptState,
    params: Params,
    loss: jax.Array,
    loss_of: Callable[[Params], jax.Array],
) -> tuple[Params, OptState]:
    """The parameters and the optimiser's state after one step along `grads`.

    Args:
      loss, loss_of: the loss at `params`, and as a function of them.
    """
    is_pair = lambda node: isinstance(node, optax.LookaheadState)
    if any(map(is_pair, jax.tree.leaves(state, is_leaf=is_pair))):
        raise TypeError(
            "optax.lookahead moves pairs of fast and slow parameters, not parameters: keep the "
            "slow ones in the optimiser's state, as the guide on optimisers does."
        )

    # Optax's line searches refuse arguments that `value_fn` does not name.
    def value_fn(params, obj_fn=None, grad_fn=None):
        return loss_of(params)

    grad_fn = lambda params, _: jax.grad(loss_of)(params)
    functions = dict(value_fn=value_fn, obj_fn=loss_of, grad_fn=grad_fn)
    updates, after = extended(optimizer).update(
        grads, state, params, value=loss, grad=grads, **functions
    )
    problem = None
    if not same_shapes(updates, params):
        problem = (
            "the optimiser's updates are not of the parameters' shapes: one that takes a gradient "
            "for every example, such as dpsgd, gets the gradient of the mean loss here"
        )
    elif jax.tree.structure(after) != jax.tree.structure(state):
        problem = (
            "the optimiser's state changes its form in a step, and a loop needs one form: in place "
            "of optax.monitor, use optax.snapshot"
        )
    if problem:
        raise ValueError(f"{problem}.")
    return optax.apply_updates(params, updates), jax.tree.map(_of_the_same_dtype, after, state)


def _of_the_same_dtype(leaf, before):
    """The leaf of a state: some optimisers widen theirs where parameters are of several dtypes."""
    dtype = jnp.result_type(before)
    return jnp.asarray(leaf, dtype) if jnp.issubdtype(dtype, jnp.floating) else leaf


def outer_step(
    optimizer: Optimizer, gradient: Params, loss: jax.Array, state: MetaState
) -> tuple[Params, OptState]:
    """The same for a meta-optimiser: `loss` is this meta step's, and there is none of θ."""
    return step(optimizer, gradient, state.opt_state, state.params, loss, _no_loss)


def _no_loss(params: Params) -> jax.Array:
    raise TypeError(
        "a meta-optimiser has no loss of θ to evaluate, only the loss of this meta step (value): a "
        "line search or curvature (value_fn, obj_fn, grad_fn) belongs into the inner optimiser. "
        "optax.lbfgs(learning_rate, linesearch=None) does without."
    )


def extended(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """The optimiser, which gets those of the extra arguments that it takes."""

    def update(updates, state, params=None, **extra):
        given = {name: extra[name] for name in _taken(optimizer, extra)}
        try:
            return optimizer.update(updates, state, params, **given)
        except TypeError as error:
            # A chain passes on all, and some take none, against Optax's rule: `contrib.sam`.
            if "unexpected keyword argument" not in str(error):
                raise
            return optimizer.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _taken(optimizer: Optimizer, names: Any) -> list[str]:
    """The extra arguments that the optimiser's `update` takes."""
    if not isinstance(optimizer, optax.GradientTransformationExtraArgs | optax.MultiSteps):
        return []
    parameters = inspect.signature(optimizer.update).parameters
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    return [name for name in names if takes_any or name in parameters]
