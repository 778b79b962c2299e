"""Meta-gradients made of the inner loop's own gradients.

Reptile sums the inner gradients; FOMAML takes the last. Both are weighted sums. For SGD of a small
rate α, mini-batches in random order, and g_i the gradient of inner step i,

    E[Σ w_i g_i] = Σ w_i AvgGrad − α Σ w_i (i − 1) AvgGradInner + O(α²)

(Nichol et al. 2018, section 5.1, whose three cases are k, −k(k−1)/2 for Reptile, 1, −(k−1) for
FOMAML and 1, −2(k−1) for MAML). So w = (−1, 0, …, 0, 2) has MAML's expectation to this order, with
first-order gradients alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax import _checks
from reptile_jax._optimizers import extended
from reptile_jax._types import (
    Batches,
    LossFn,
    MetaGradient,
    Optimizer,
    OptState,
    Params,
    TaskGradient,
)
from reptile_jax.reptile import inner_loop
from reptile_jax.tasks.padding import Masked
from reptile_jax.tasks.repeated import repeat, split_last


def weighted_gradients(
    loss_fn: LossFn, inner_optimizer: Optimizer, weights: Sequence[float]
) -> MetaGradient:
    """Σ w_i g_i over the inner steps' gradients, one weight per step. Uses no query set.

    With SGD of rate α, all ones gives Reptile's meta-gradient divided by α; (0, …, 0, 1) is FOMAML
    on the last mini-batch. With another inner optimiser the gradients are still the loss's own, not
    its updates.

    Raises:
      ValueError: if there is not one finite weight for each inner step.
    """
    _checks.check_inner(loss_fn, inner_optimizer)
    try:
        per_step = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        per_step = np.empty(())
    if per_step.ndim != 1 or not np.isfinite(per_step).all():
        raise ValueError(f"weights are a sequence of finite numbers, got {weights}.")

    def compute(params, opt_state, task, model_state=None):
        steps = _checks.check_steps(task.support, "the support set")
        if steps != len(per_step):
            raise ValueError(f"{len(per_step)} weights for {steps} inner steps: give one for each.")
        optimizer = _adding_up(inner_optimizer, _of_steps_taken(per_step, task.support))
        start: Any = optimizer.init(params)
        if opt_state is not None:
            start = start._replace(inner=opt_state)
        adapted = inner_loop(loss_fn, optimizer, params, task.support, start, model_state)
        return TaskGradient(adapted.opt_state.total, adapted.opt_state.inner, *adapted[2:])

    return MetaGradient(inner_optimizer.init, compute)


class _Sum(NamedTuple):
    """The state of an inner optimiser that adds up the gradients that it is given."""

    inner: OptState
    total: Params  # Σ w_i g_i
    taken: jax.Array  # [] int32: steps so far


def _adding_up(optimizer: Optimizer, weights: jax.Array) -> Optimizer:
    """`optimizer`, with the sum of the gradients, by `weights` `[steps]`, in its state."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _Sum(optimizer.init(params), zeros, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        weight = weights[state.taken]
        add = lambda total, gradient: total + weight.astype(gradient.dtype) * gradient
        total = jax.tree.map(add, state.total, updates)
        updates, inner = extended(optimizer).update(updates, state.inner, params, **extra)
        return updates, _Sum(inner, total, state.taken + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _of_steps_taken(weights: np.ndarray, support: Batches) -> jax.Array:
    """The weights in the order of the steps that are taken: `inner_loop` skips empty batches."""
    per_step: Any = jnp.asarray(weights, jnp.result_type(float))
    if isinstance(support, Masked):
        is_empty = ~jnp.any(support.mask, axis=-1)
        per_step = per_step[jnp.argsort(is_empty, stable=True)]
    return per_step


def foml(loss_fn: LossFn, inner_optimizer: Optimizer) -> MetaGradient:
    """The inner loop's last update, φ before it − φ after it: the released code's "FOML".

    The last update is on the query set, a tail batch of its own, if the task has one; otherwise it
    is on the last of the support's mini-batches. For plain SGD this is FOMAML times the rate; for
    any other inner optimiser it is another algorithm than `fomaml`.

    Raises:
      ValueError: for a single mini-batch and no query set: there is nothing before the last update.
    """
    _checks.check_inner(loss_fn, inner_optimizer)

    def compute(params, opt_state, task, model_state=None):
        head, tail = task.support, task.query
        if tail is None:
            if _checks.check_steps(head, "the support set") < 2:
                raise ValueError("foml needs two mini-batches, or a query set as the last one.")
            head, tail = split_last(head)
        last = repeat(tail, 1)
        before = inner_loop(loss_fn, inner_optimizer, params, head, opt_state, model_state)
        after = inner_loop(
            loss_fn, inner_optimizer, before.params, last, before.opt_state, before.model_state
        )
        delta = jax.tree.map(jnp.subtract, before.params, after.params)
        join = lambda *leaves: jnp.concatenate(leaves)
        losses, aux = join(before.losses, after.losses), None
        if before.aux is not None:  # of a task that was streamed, it is not known any more
            aux = jax.tree.map(join, before.aux, after.aux)
        return TaskGradient(delta, after.opt_state, losses, after.model_state, aux)

    return MetaGradient(inner_optimizer.init, compute)
