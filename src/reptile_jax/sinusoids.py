"""p(τ) of the sine-wave experiment, drawn on the device (Nichol et al. 2018, section 4)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from reptile_jax.tasks import Batch, Key, Task, minibatches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sinusoids:
    """Waves a·sin(x + b) on a grid of inputs. Make one with `sinusoids`."""

    amplitude: tuple[float, float] = dataclasses.field(metadata={"static": True})
    phase: tuple[float, float] = dataclasses.field(metadata={"static": True})  # radians
    inputs: tuple[float, float] = dataclasses.field(metadata={"static": True})
    points: int = dataclasses.field(metadata={"static": True})
    shots: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One wave: support `[steps, batch_size, 1]`, and for a query the grid `[points, 1]`."""
        amplitude_key, phase_key, shots_key, batches_key = jax.random.split(key, 4)
        amplitude = jax.random.uniform(
            amplitude_key, minval=self.amplitude[0], maxval=self.amplitude[1]
        )
        phase = jax.random.uniform(phase_key, minval=self.phase[0], maxval=self.phase[1])
        x = jnp.linspace(*self.inputs, self.points)[:, None]
        wave = Batch(x, amplitude * jnp.sin(x + phase))
        given = wave
        if self.shots < self.points:
            chosen = jax.random.permutation(shots_key, self.points)[: self.shots]
            given = jax.tree.map(lambda leaf: leaf[chosen], wave)
        support = minibatches(batches_key, given, steps=self.steps, batch_size=self.batch_size)
        return Task(support, wave)


def sinusoids(
    *,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, 2 * math.pi),
    inputs: tuple[float, float] = (-5.0, 5.0),
    points: int = 50,
    shots: int = 50,
    steps: int = 5,
    batch_size: int = 10,
) -> Sinusoids:
    """The paper's waves: amplitude U[0.1, 5], phase U[0, 2π], inputs in [-5, 5].

    The defaults for training are those of the authors' demonstration: one pass over a grid of 50
    points in five mini-batches of ten. For evaluation, `shots` distinct points of the grid are
    given, and the query set is the grid.

    Raises:
      ValueError: for more shots than points, or sizes below 1.
    """
    if not 1 <= shots <= points:
        raise ValueError(
            f"shots are drawn from the grid: 1 <= shots <= points, got {shots} of {points}."
        )
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size are at least 1, got {steps} and {batch_size}.")
    return Sinusoids(amplitude, phase, inputs, points, shots, steps, batch_size)
