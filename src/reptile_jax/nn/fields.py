"""Neural fields: networks from a point in space to the value there."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Field(nn.Module):
    """A network on Fourier features of the points, with values in (0, 1).

    Sine and cosine of `features` random directions, and dense layers with ReLU and a sigmoid at the
    end; the defaults are those for tomography in Tancik et al. 2021 ("Learned Initializations").
    The directions are normal with standard deviation `scale`, in radians across the image. They are
    the same for all initialisations, and are not trained.
    """

    features: int = 256
    width: int = 256
    layers: int = 5
    scale: float = 30.0

    @nn.compact
    def __call__(self, points: jax.Array) -> jax.Array:
        """Points `[batch, dimensions]` in [0, 1] -> values `[batch, 1]`."""
        # The same directions whatever the points' precision and JAX's default kind of keys.
        key, shape = jax.random.key(0, impl="threefry2x32"), (points.shape[-1], self.features)
        directions = self.scale * jax.random.normal(key, shape, jnp.float32)
        phase = points @ directions.astype(jnp.result_type(points, float))
        x = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)
        for _ in range(self.layers - 1):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.sigmoid(nn.Dense(1)(x))
