"""The paper's networks, in Flax, and the losses and scores that go with them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from reptile_jax import convolution, layers
from reptile_jax.reptile import LossFn, Params
from reptile_jax.tasks import Batch

# (params, inputs [batch, ...]) -> outputs [batch, ...]; Flax's own may return more.
Apply: TypeAlias = Callable[..., Any]

# Uniform in ±1/√fan_in.
_fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLP(nn.Module):
    """A multi-layer perceptron; the paper's sine waves have 64-64-1 (section 4).

    As in the authors' demonstration, tanh rather than the paper's ReLU, and weights and biases
    uniform in ±1/√fan_in: biases of zero would leave all kinks at the origin, and cost a factor of
    three in the sine waves' error.
    """

    features: Sequence[int] = (64, 64, 1)
    activation: Callable[[jax.Array], jax.Array] = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, inputs]` -> `[batch, features[-1]]`."""
        for layer, features in enumerate(self.features):
            fan_in = x.shape[-1]
            bias_init = lambda key, shape, dtype, fan_in=fan_in: jax.random.uniform(
                key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5
            )
            x = nn.Dense(features, kernel_init=_fan_in_uniform, bias_init=bias_init)(x)
            if layer < len(self.features) - 1:
                x = self.activation(x)
        return x


class BatchNorm(nn.Module):
    """Batch normalisation by the batch's own statistics, in training and at test time alike.

    There is no running average, so what is normalised together is what is in the batch: that, and
    nothing else, makes an evaluation transductive or not (Nichol et al. 2018, section 6.1).
    """

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]`, normalised over all axes but the last."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layers.batch_norm(x, scale, bias, self.epsilon)


class Conv(nn.Module):
    """A 3x3 convolution with padding "SAME" in front of batch norm, which takes out its bias.

    The bias is a parameter, as in the released code, and not computed with: it would change
    nothing, and its gradient of zero would be rounding noise, which Adam turns into whole steps.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` -> `[batch, height / stride, ..., features]`."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        self.param("bias", nn.initializers.zeros, (self.features,))
        return convolution.conv_general_dilated(
            x, kernel, (self.stride,) * 2, "SAME", dimension_numbers=convolution.LAYOUT
        )


class ConvNet(nn.Module):
    """Four blocks of 3x3 convolution, batch norm and ReLU, and a linear classifier.

    The paper's two networks (section 6.1, released code): `omniglot_net` halves the image by the
    stride, `mini_imagenet_net` by max-pooling before the ReLU. Kernels start Glorot-uniform,
    the classifier's as `classifier_init` has it; `classifier_mask` marks its parameters.
    """

    ways: int
    features: int = 64
    pool: bool = False
    blocks: int = 4
    classifier_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[batch, height, width, channels]` -> logits `[batch, ways]`."""
        x = images
        for _ in range(self.blocks):
            x = Conv(self.features, stride=1 if self.pool else 2)(x)
            x = BatchNorm()(x)
            if self.pool:
                x = layers.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.ways, kernel_init=self.classifier_init)(x)


def classifier_mask(params: Params) -> Params:
    """A tree like the parameters of a `ConvNet`: True at its linear classifier, else False."""
    name = jax.tree_util.DictKey("Dense_0")
    return jax.tree.map_with_path(lambda path, _: name in path, params)


def omniglot_net(ways: int) -> ConvNet:
    """The paper's network for 28x28x1 images: 113,221 parameters for 5 ways."""
    return ConvNet(ways, features=64)


def mini_imagenet_net(ways: int) -> ConvNet:
    """The paper's network for 84x84x3 images: 34,661 parameters for 5 ways."""
    return ConvNet(ways, features=32, pool=True)


def squared_error(apply: Apply) -> LossFn:
    """The mean squared error of `apply` on a `Batch`, over examples and outputs."""

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        return jnp.mean((apply(params, batch.inputs) - batch.targets) ** 2)

    return loss_fn


def cross_entropy(apply: Apply, batch_size: int | None = None) -> LossFn:
    """The cross-entropy of `apply`'s logits on a `Batch` of integer labels `[batch]`.

    Args:
      batch_size: what its sum over the batch is divided by; by default the examples in the batch,
        which makes it the mean. The released code takes the sum; see `presets`.
    """

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        logits = apply(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return jnp.sum(losses) / (batch_size or losses.size)

    return loss_fn
