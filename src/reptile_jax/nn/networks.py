"""The paper's networks, in Flax.

As in Flax, parameters start in float32, also where JAX has float64 enabled: cast them for another
precision. A layer computes in the wider of its inputs' precision and its parameters'.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._types import Params
from reptile_jax.nn import layers
from reptile_jax.nn._checks import LAYOUT
from reptile_jax.nn.convolution import conv_general_dilated

# Uniform in ±1/√fan_in.
_fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class MLP(nn.Module):
    """A multi-layer perceptron; for sine waves the paper uses 64-64-1 (section 4).

    As in the authors' demonstration, it uses tanh instead of the paper's ReLU, and starts weights
    and biases uniform in ±1/√fan_in. With biases of zero the network is an odd function of x, and
    the error on sine waves is three times as large.
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
    """Batch normalisation by the batch's own statistics, both in training and at test time.

    There is no running average. So only the contents of the batch decide whether an evaluation is
    transductive (Nichol et al. 2018, section 6.1).
    """

    epsilon: float = 1e-3
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., features]`, normalised over all axes but the last; then pooled, if asked to."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        if self.pool:
            return layers.pooled_batch_norm(self.epsilon, x, scale, bias)
        return layers.batch_norm(x, scale, bias, self.epsilon)


class Conv(nn.Module):
    """A 3x3 convolution with padding "SAME", to be followed by batch norm, which removes its bias.

    The bias is a parameter, as in the released code, but is not used. It would change nothing, and
    its gradient of zero would be rounding noise, which Adam turns into whole steps.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels]` -> `[batch, height / stride, ..., features]`."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        if jnp.issubdtype(x.dtype, jnp.floating):  # the wider of the two, as in Flax's layers
            wide = np.promote_types(x.dtype, kernel.dtype)
            x, kernel = x.astype(wide), kernel.astype(wide)
        return conv_general_dilated(x, kernel, (self.stride,) * 2, "SAME", dimension_numbers=LAYOUT)


class ConvNet(nn.Module):
    """Four blocks of 3x3 convolution, batch norm and ReLU, and a linear classifier.

    The paper has two such networks (section 6.1, released code): `omniglot_net` halves the image by
    the stride, `mini_imagenet_net` by max-pooling before the ReLU. Kernels start Glorot-uniform,
    the classifier's by `classifier_init`. `classifier_mask` marks the classifier's parameters.
    """

    ways: int
    features: int = 64
    pool: bool = False
    blocks: int = 4
    classifier_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, images: jax.Array, *, classify: bool = True) -> jax.Array:
        """Images `[batch, height, width, channels]` -> logits `[batch, ways]`.

        With `classify=False` the features that the classifier is given, `[batch, features]`.
        """
        x = images
        for _ in range(self.blocks):
            x = Conv(self.features, stride=1 if self.pool else 2)(x)
            x = nn.relu(BatchNorm(pool=self.pool)(x))
        x = x.reshape(x.shape[0], -1)
        if not classify:
            return x
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
