"""Losses of a network's `apply` on a `Batch`."""

import jax
import jax.numpy as jnp
import optax

from reptile_jax._types import Apply, Batch, LossFn, Params


def squared_error(apply: Apply) -> LossFn:
    """The mean squared error of `apply` on a `Batch`, over examples and outputs."""

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean((apply(params, batch.inputs) - batch.targets) ** 2)

    return loss_fn


def cross_entropy(apply: Apply, batch_size: int | None = None) -> LossFn:
    """The cross-entropy of `apply`'s logits on a `Batch` of integer labels `[batch]`.

    Args:
      apply: `(params, inputs [batch, ...]) -> logits [batch, classes]`.
      batch_size: the divisor of the sum over the batch; by default the number of examples, which
        gives the mean. The released code uses the sum, which is `batch_size=1`.
    """

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        logits = apply(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.sum(losses) / (batch_size or losses.size)

    return loss_fn
