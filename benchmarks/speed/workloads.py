"""The paper's networks and inner loops, on made data of the real shapes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from reptile_jax.app import presets
from reptile_jax.app.experiments import few_shot as few_shot_app


class Layer(NamedTuple):
    """A layer as the product of inputs [rows, fan_in] and weights [fan_in, fan_out]."""

    rows: int
    fan_in: int
    fan_out: int

    def flops(self, first: bool) -> int:
        """Forward, the weights' gradient, and the inputs' in all layers but the first."""
        return 2 * self.rows * self.fan_in * self.fan_out * (2 if first else 3)

    def bytes(self, first: bool) -> int:
        """What these products read and write, each operand and result once, in float32."""
        operands = self.rows * (self.fan_in + self.fan_out) + self.fan_in * self.fan_out
        return 4 * operands * (2 if first else 3)


@dataclasses.dataclass(frozen=True)
class Workload:
    """One meta step's work."""

    name: str
    params: Any
    loss_fn: Callable
    inner_optimizer: optax.GradientTransformation
    distribution: Any
    inner_opt_state: str
    layers: tuple[Layer, ...]  # of one inner step

    @property
    def steps(self) -> int:
        return self.distribution.steps

    def tasks(self, number: int, seed: int = 0) -> rj.Task:
        """A meta-batch `[tasks, ...]`, drawn beforehand."""
        keys = jax.random.split(jax.random.key(seed), number)
        return rj.Task(jax.jit(jax.vmap(self.distribution.sample))(keys).support)

    @property
    def flops(self) -> int:
        """Floating-point operations of one task's matrix products."""
        return self.steps * sum(layer.flops(i == 0) for i, layer in enumerate(self.layers))

    @property
    def bytes(self) -> int:
        """Memory traffic of one task's matrix products: the least that these products need."""
        return self.steps * sum(layer.bytes(i == 0) for i, layer in enumerate(self.layers))


@functools.cache
def few_shot(preset: str) -> Workload:
    """A row of the paper, on random images."""
    config = presets.PAPER[preset]
    learned = few_shot_app.learned_by(config)
    channels = 1 if config.color == "grey" else 3
    rng = np.random.default_rng(0)
    classes, examples = 40, config.train_shots
    images = rng.integers(
        0, 2, (classes * examples, config.size, config.size, channels), dtype=np.uint8
    )
    distribution = rj.tasks.few_shot(
        rj.tasks.ImageClasses(
            images * np.uint8(255),
            np.arange(classes, dtype=np.int32) * examples,
            np.full(classes, examples, np.int32),
        ),
        ways=config.ways,
        shots=config.train_shots,
        steps=config.inner_steps,
        batch_size=config.inner_batch,
    )
    return Workload(
        preset,
        learned.first_state().params,
        rj.nn.cross_entropy(learned.model.apply, config.inner_batch),
        learned.inner_optimizer,
        distribution,
        config.inner_opt_state,
        _convnet_layers(learned.model, config.size, channels, config.inner_batch),
    )


@functools.cache
def sinusoid(steps: int = 32) -> Workload:
    """The sine waves' network, 32 inner steps of batch 10 as in the paper's evaluation."""
    model = rj.nn.MLP()
    return Workload(
        "sinusoid",
        jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1))),
        rj.nn.squared_error(model.apply),
        optax.sgd(0.02),
        rj.tasks.sinusoids(steps=steps, batch_size=10),
        "reset",
        (Layer(10, 1, 64), Layer(10, 64, 64), Layer(10, 64, 1)),
    )


def named(name: str) -> Workload:
    """A row of the paper, or "sinusoid"."""
    return sinusoid() if name == "sinusoid" else few_shot(name)


def _convnet_layers(
    model: rj.nn.ConvNet, size: int, channels: int, batch: int
) -> tuple[Layer, ...]:
    """Each convolution as patches [pixels, 9 channels] times a kernel [9 channels, features]."""
    layers = []
    for _ in range(model.blocks):
        halved = -(-size // 2)
        out = size if model.pool else halved
        layers.append(Layer(batch * out * out, 9 * channels, model.features))
        size, channels = halved, model.features
    return (*layers, Layer(batch, size * size * channels, model.ways))
