"""Meta-gradients made of the inner loop's own gradients.

Between Reptile, which sums them, and FOMAML, which takes the last, lies every weighted sum. For SGD
of a small rate α, mini-batches in random order, and g_i the gradient of inner step i,

    E[Σ w_i g_i] = Σ w_i AvgGrad − α Σ w_i (i − 1) AvgGradInner + O(α²)

(Nichol et al. 2018, section 5.1, whose three cases are k, −k(k−1)/2 for Reptile, 1, −(k−1) for
FOMAML and 1, −2(k−1) for MAML). So w = (−1, 0, …, 0, 2) has MAML's expectation to this order, with
first-order gradients alone.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax.checks import LossFn, check_inner, scalar
from reptile_jax.padding import unless_empty
from reptile_jax.reptile import MetaGradient, inner_loop
from reptile_jax.task_axis import TaskGradient
from reptile_jax.tasks import check_leading_axis


def weighted(
    loss_fn: LossFn, inner_optimizer: optax.GradientTransformation, weights: Sequence[float]
) -> MetaGradient:
    """Σ w_i g_i over the inner steps' gradients, one weight per step. Uses no query set.

    All ones is Reptile over the rate of plain SGD; (0, …, 0, 1) is FOMAML on the last mini-batch.
    With another inner optimiser the gradients are still the loss's own, not its updates.

    Raises:
      ValueError: if there is not one finite weight for each inner step.
    """
    check_inner(loss_fn, inner_optimizer)
    try:
        per_step = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        per_step = np.empty(())
    if per_step.ndim != 1 or not np.isfinite(per_step).all():
        raise ValueError(f"weights are a sequence of finite numbers, got {weights}.")

    def estimate(params, opt_state, task):
        steps = check_leading_axis(task.support, "steps", "the support set")
        if steps != len(per_step):
            raise ValueError(f"{len(per_step)} weights for {steps} inner steps: give one for each.")

        def step(carry, batch, weight):
            params, opt_state, total = carry
            loss, gradient = jax.value_and_grad(scalar(loss_fn))(params, batch)
            updates, opt_state = inner_optimizer.update(gradient, opt_state, params)
            add = lambda sum_, g: sum_ + weight.astype(g.dtype) * g
            total = jax.tree.map(add, total, gradient)
            return (optax.apply_updates(params, updates), opt_state, total), loss

        if opt_state is None:
            opt_state = inner_optimizer.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        xs = task.support, jnp.asarray(per_step, jnp.result_type(float))
        (_, opt_state, total), losses = jax.lax.scan(
            lambda carry, x: unless_empty(step)(carry, *x), (params, opt_state, zeros), xs
        )
        return TaskGradient(total, opt_state, losses)

    return MetaGradient(inner_optimizer.init, estimate)


def foml(loss_fn: LossFn, inner_optimizer: optax.GradientTransformation) -> MetaGradient:
    """The inner loop's last update, φ before it − φ after it: the released code's "FOML".

    The last update is on the query set, a tail batch of its own, if the task has one; otherwise it
    is on the last of the support's mini-batches. For plain SGD this is FOMAML times the rate; for
    any other inner optimiser it is another algorithm than `fomaml`.

    Raises:
      ValueError: for a single mini-batch and no query set: there is nothing before the last update.
    """
    check_inner(loss_fn, inner_optimizer)

    def estimate(params, opt_state, task):
        head, tail = task.support, task.query
        if tail is None:
            if check_leading_axis(head, "steps", "the support set") < 2:
                raise ValueError("foml needs two mini-batches, or a query set as the last one.")
            head, tail = (
                jax.tree.map(lambda leaf: leaf[:-1], head),
                jax.tree.map(lambda leaf: leaf[-1], head),
            )
        last = jax.tree.map(lambda leaf: leaf[None], tail)
        before = inner_loop(loss_fn, inner_optimizer, params, head, opt_state)
        after = inner_loop(loss_fn, inner_optimizer, before.params, last, before.opt_state)
        delta = jax.tree.map(jnp.subtract, before.params, after.params)
        return TaskGradient(delta, after.opt_state, jnp.concatenate([before.losses, after.losses]))

    return MetaGradient(inner_optimizer.init, estimate)
