"""Reptile that treats parts of the parameters differently, with Optax alone.

The features are frozen. In the inner loop the body learns slowly and the head fast. Each task
learns its own offset from zero: meta steps leave it alone.

    python examples/dict_parts_of_parameters.py [meta steps]
"""

import sys

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


def loss_fn(params, batch):
    angles = batch.inputs * params["features"]
    hidden = jnp.tanh(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1) @ params["body"])
    return jnp.mean((hidden @ params["head"] + params["offset"] - batch.targets) ** 2)


def waves(key: jax.Array, tasks: int, steps: int, batch: int) -> rj.Task:
    """Waves a·sin(x + b) + c: every task has its own amplitude, phase and constant."""
    x_key, *keys = jax.random.split(key, 4)
    draw = lambda key, low, high: jax.random.uniform(key, (tasks, 1, 1, 1), minval=low, maxval=high)
    a, b, constant = map(draw, keys, (0.5, 0.0, -5.0), (2.0, 3.0, 5.0))
    x = jax.random.uniform(x_key, (tasks, steps, batch, 1), minval=-3.0, maxval=3.0)
    return rj.Task(rj.Batch(x, a * jnp.sin(x + b) + constant))


def main(meta_steps: int) -> None:
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    params = {
        "features": draw(0, 1, 16),
        "body": 0.2 * draw(1, 32, 32),
        "head": 0.1 * draw(2, 32, 1),
        "offset": jnp.zeros((1, 1)),
    }
    # Not `optax.masked(sgd(...))`: its updates of the other parts are their gradients.
    sgd, zero = optax.sgd, optax.set_to_zero()
    inner = optax.partition(
        {"features": zero, "body": sgd(0.01), "head": sgd(0.03), "offset": sgd(0.3)},
        {part: part for part in params},
    )
    kept = {part: part in ("features", "offset") for part in params}
    outer = optax.chain(sgd(0.5), optax.masked(zero, kept))
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), outer)
    state = learner.init(params)
    draw = jax.jit(lambda key: waves(key, tasks=8, steps=8, batch=10))
    for step in range(1, meta_steps + 1):
        state, info = learner.step(state, draw(jax.random.key(step)))
        if step % 500 == 0:
            print(f"meta step {step}: loss {info.losses[:, -1].mean():.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
