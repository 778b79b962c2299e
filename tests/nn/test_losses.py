"""The losses, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax import nn


def test_losses_are_means_over_the_batch_unless_told_its_size():
    outputs = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    apply = lambda params, inputs: params * outputs
    error = nn.squared_error(apply)(jnp.ones((1, 1)), rj.Batch(None, jnp.zeros((2, 2))))
    np.testing.assert_allclose(error, (1 + 4 + 0 + 1) / 4)
    loss = nn.cross_entropy(apply)(jnp.ones((1, 1)), rj.Batch(None, jnp.array([1, 0])))
    by_hand = [-2 + np.log(np.exp(1) + np.exp(2)), 0 + np.log(1 + np.exp(-1))]
    np.testing.assert_allclose(loss, np.mean(by_hand), rtol=1e-6)
    share = nn.cross_entropy(apply, 10)(jnp.ones((1, 1)), rj.Batch(None, jnp.array([1, 0])))
    np.testing.assert_allclose(share, np.sum(by_hand) / 10, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (1, 1)])
def test_targets_of_another_shape_are_refused(shape):
    """NumPy would compare every output with every target."""
    loss_fn = nn.squared_error(lambda params, inputs: params * inputs)
    batch = rj.Batch(jnp.ones((4, 1)), jnp.ones(shape))
    with pytest.raises(ValueError, match=r"they are \[4, 1\] and the targets \["):
        loss_fn(jnp.ones((1, 1)), batch)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_has_examples(size):
    with pytest.raises((TypeError, ValueError), match="batch_size is a"):
        nn.cross_entropy(lambda params, inputs: inputs, batch_size=size)
