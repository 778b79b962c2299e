"""Reptile with a Flax NNX model, your own NumPy tasks, and Adam as the meta-optimiser.

python examples/nnx_own_tasks.py [meta steps]
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import reptile_jax as rj


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.gelu(self.hidden(x)))


def planes(rng: np.random.Generator, tasks: int, steps: int, batch: int) -> rj.Task:
    """Each task is a plane z = ax + by; leaves are led by [tasks, steps, batch]."""
    slopes = rng.normal(size=(tasks, 1, 1, 2)).astype(np.float32)
    points = rng.uniform(-1, 1, (tasks, steps, batch, 2)).astype(np.float32)
    return rj.Task(rj.Batch(points, (points * slopes).sum(-1, keepdims=True)))


def main(meta_steps: int) -> None:
    graph, params = nnx.split(Network(nnx.Rngs(0)))

    def loss_fn(params, batch):
        predictions = nnx.merge(graph, params)(batch.inputs)
        return jnp.mean((predictions - batch.targets) ** 2)

    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.adam(3e-3))
    state = learner.init(params)
    rng = np.random.default_rng(0)
    for step in range(1, meta_steps + 1):
        state, info = learner.step(state, planes(rng, tasks=8, steps=5, batch=10))
        if step % 200 == 0:
            first, last = info.losses[:, 0].mean(), info.losses[:, -1].mean()
            print(f"meta step {step}: loss {first:.3f}, after four inner steps {last:.3f}")

    model = nnx.merge(graph, state.params)
    print(f"the learned model at the origin: {float(model(jnp.zeros((1, 2)))[0, 0]):.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
