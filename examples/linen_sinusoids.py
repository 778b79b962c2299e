"""Reptile with a Flax linen model, on sine waves that are drawn on the device.

python examples/linen_sinusoids.py [meta steps]
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(64, bias_init=nn.initializers.normal(1.0))(x))
        return nn.Dense(1)(x)


def main(meta_steps: int) -> None:
    network = Network()
    params = network.init(jax.random.key(0), jnp.zeros((1, 1)))

    def loss_fn(params, batch):
        return jnp.mean((network.apply(params, batch.inputs) - batch.targets) ** 2)

    inner = optax.sgd(0.02)
    anneal = optax.linear_schedule(1.0, 0.0, meta_steps)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(anneal))

    waves, key = rj.tasks.sinusoids(), jax.random.key(1)
    loop = rj.train(learner, learner.init(params), waves, key, until=meta_steps, meta_batch=5)
    for state, infos in loop:
        if int(state.step) % 1000 == 0:
            print(f"meta step {int(state.step)}: loss {infos.losses[..., -1].mean():.3f}")

    held_out = rj.tasks.sinusoids(shots=10, steps=32)
    score = lambda params, task: loss_fn(params, task.query)
    result = rj.evaluate(
        loss_fn, score, inner, state.params, held_out, jax.random.key(2), num_tasks=200
    )
    print(
        f"held-out error before adapting {result.mean[0]:.3f}, after 32 steps {result.mean[1]:.3f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
