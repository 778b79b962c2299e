"""Batch norm with running averages, and dropout, in Flax linen.

The running averages are a model state, which the loss takes and returns. At test time the network
normalises by them, not by the batch. Each mini-batch has a key for dropout.

    python examples/linen_batch_norm_dropout.py [meta steps]
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.tanh(nn.BatchNorm(not train, momentum=0.9)(nn.Dense(64)(x)))
        x = nn.tanh(nn.BatchNorm(not train, momentum=0.9)(nn.Dense(64)(x)))
        return nn.Dense(1)(nn.Dropout(0.05, deterministic=not train)(x))


def waves(key: jax.Array, tasks: int, **sizes) -> rj.Task:
    task = jax.vmap(rj.tasks.sinusoids(**sizes).sample)(jax.random.split(key, tasks))
    keys = jax.random.split(jax.random.fold_in(key, 0), task.support.inputs.shape[:2])
    return task._replace(support=(*task.support, keys))  # keys [tasks, steps]


def main(meta_steps: int) -> None:
    network = Network()

    def loss_fn(params, stats, batch):
        (x, y, key), model = batch, {"params": params, "batch_stats": stats}
        out, model = network.apply(model, x, True, mutable="batch_stats", rngs={"dropout": key})
        return jnp.mean((out - y) ** 2), model["batch_stats"]

    def score(params, stats, task):
        out = network.apply({"params": params, "batch_stats": stats}, task.query.inputs)
        return jnp.mean((out - task.query.targets) ** 2)

    inner, draw = optax.sgd(0.02), jax.jit(waves, static_argnums=1)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(0.5))
    model = network.init(jax.random.key(0), jnp.zeros((1, 1)))
    state = learner.init(model["params"], model["batch_stats"])
    for step in range(1, meta_steps + 1):
        state, info = learner.step(state, draw(jax.random.key(step), 5))
        if step % 500 == 0:
            print(f"meta step {step}: loss {info.losses[:, -1].mean():.3f}")
    unseen = waves(jax.random.key(0), 200, shots=10, steps=32)
    end = rj.evaluate(loss_fn, score, inner, state.params, unseen, model_state=state.model_state)
    print(f"held-out error {end.mean[0]:.3f}, after 32 steps {end.mean[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
