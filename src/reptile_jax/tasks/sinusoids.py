"""The sine waves of the paper's first experiment, drawn on the device (Nichol et al. 2018, 4)."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from reptile_jax._types import Batch, Key, Task
from reptile_jax._values import check_integers, check_range
from reptile_jax.tasks.minibatches import shuffles
from reptile_jax.tasks.repeated import repeat


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
    batch_size: int | None = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One wave: support `[steps, batch_size, 1]`, and the grid `[points, 1]` as query set.

        Mini-batches are drawn as in `minibatches`; with `batch_size=None` the support is `Repeated`
        `[shots, 1]`. One call makes all of a task's random words: on a CPU the calls, and sorting
        keys with their indices, cost most of the time.
        """
        subset = self.points if self.shots < self.points else 0  # words to choose the subset
        size = self.batch_size or self.shots
        whole = size % self.shots == 0  # a shuffle would only reorder each batch
        passes = 0 if whole else -(-self.steps * size // self.shots)
        words = jax.random.bits(key, (2 + subset + passes * self.shots,), jnp.uint32)
        wave_words, subset_words, order_words = jnp.split(words, [2, 2 + subset])
        amplitude, phase = (
            low + (high - low) * word
            for (low, high), word in zip(
                (self.amplitude, self.phase), wave_words.astype(float) * 2.0**-32, strict=True
            )
        )
        x = jnp.linspace(*self.inputs, self.points)[:, None]
        wave = Batch(x, amplitude * jnp.sin(x + phase))
        index = shuffles(subset_words[None])[0, : self.shots] if subset else jnp.arange(self.points)
        if self.batch_size is None:
            return Task(repeat(jax.tree.map(lambda leaf: leaf[index], wave), self.steps), wave)
        if whole:
            order = jnp.tile(index, self.steps * (size // self.shots))
        else:
            order = index[shuffles(order_words.reshape(passes, self.shots)).reshape(-1)]
        order = order[: self.steps * size].reshape(self.steps, size)
        return Task(jax.tree.map(lambda leaf: leaf[order], wave), wave)


def sinusoids(
    *,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, 2 * math.pi),
    inputs: tuple[float, float] = (-5.0, 5.0),
    points: int = 50,
    shots: int = 50,
    steps: int = 5,
    batch_size: int | None = 10,
) -> Sinusoids:
    """The paper's waves a·sin(x + b) (Nichol et al. 2018, section 4).

    The defaults are for training, as in the authors' demonstration: one pass over a grid of 50
    points in five mini-batches of ten.

    Args:
      amplitude: lowest and highest a, drawn uniformly.
      phase: lowest and highest b in radians, drawn uniformly.
      inputs: lowest and highest x; the grid divides this range evenly.
      points: points in the grid, which is the query set.
      shots: distinct points of the grid in the support set.
      steps, batch_size: the inner loop's mini-batches of the support set, as in `minibatches`.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for more shots than points, sizes below 1, or ranges that are not of two finite
        numbers in order.
    """
    points, shots, steps = check_integers(points=points, shots=shots, steps=steps)
    if batch_size is not None:
        (batch_size,) = check_integers(batch_size=batch_size)
    amplitude, phase, inputs = (
        check_range(name, ends)
        for name, ends in {"amplitude": amplitude, "phase": phase, "inputs": inputs}.items()
    )
    if shots > points:
        raise ValueError(
            f"shots are drawn from the grid: 1 <= shots <= points, got {shots} of {points}."
        )
    return Sinusoids(amplitude, phase, inputs, points, shots, steps, batch_size)
