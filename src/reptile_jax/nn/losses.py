"""Losses of a network's `apply` on a `Batch`."""

import jax
import jax.numpy as jnp
import optax

from reptile_jax._types import Apply, Batch, LossFn, Params
from reptile_jax._values import check_integers, check_same_shape


def squared_error(apply: Apply) -> LossFn:
    """The mean squared error of `apply` on a `Batch`, over examples and outputs.

    Raises:
      ValueError: at tracing, for outputs that are not of the targets' shape.
    """

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        outputs = apply(params, batch.inputs)
        check_same_shape(outputs, batch.targets)
        return jnp.mean((outputs - batch.targets) ** 2)

    return loss_fn


def cross_entropy(apply: Apply, batch_size: int | None = None) -> LossFn:
    """The cross-entropy of `apply`'s logits on a `Batch` of integer labels `[batch]`.

    Args:
      apply: `(params, inputs [batch, ...]) -> logits [batch, classes]`.
      batch_size: the divisor of the sum over the batch; by default the number of examples, which
        gives the mean. The released code uses the sum, which is `batch_size=1`.

    Raises:
      TypeError: for a batch size that is not an integer.
      ValueError: for a batch size below 1.
    """
    if batch_size is not None:
        (batch_size,) = check_integers(batch_size=batch_size)

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        logits = apply(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.sum(losses) / (batch_size or losses.size)

    return loss_fn
