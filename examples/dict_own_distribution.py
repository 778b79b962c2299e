"""Reptile with parameters in a plain dict, and your own task distribution.

A task is to tell the two sides of a random line apart. The distribution is a pytree with a
`sample` method. So tasks are drawn on the device, and many meta steps run in one dispatch.

    python examples/dict_own_distribution.py [meta steps]
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfPlanes:
    noise: float  # an argument of the compiled program: a new value does not recompile

    def sample(self, key: jax.Array) -> rj.Task:
        normal_key, point_key, noise_key, batch_key = jax.random.split(key, 4)
        normal = jax.random.normal(normal_key, (2,))
        points = jax.random.normal(point_key, (20, 2))
        margin = points @ normal + self.noise * jax.random.normal(noise_key, (20,))
        examples = rj.Batch(points, (margin > 0).astype(jnp.float32))
        return rj.Task(rj.tasks.minibatches(batch_key, examples, steps=6, batch_size=10))


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w"] + params["b"])
    return jnp.mean(optax.sigmoid_binary_cross_entropy(hidden @ params["v"], batch.targets))


def main(meta_steps: int) -> None:
    w_key, v_key = jax.random.split(jax.random.key(0))
    params = {
        "w": jax.random.normal(w_key, (2, 16)),
        "b": jnp.zeros((1, 16)),
        "v": 0.3 * jax.random.normal(v_key, (16,)),
    }
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.5)), optax.sgd(0.1))
    tasks, key = HalfPlanes(noise=0.1), jax.random.key(1)
    loop = rj.train(learner, learner.init(params), tasks, key, until=meta_steps, meta_batch=4)
    for state, infos in loop:
        if int(state.step) % 500 == 0:
            first, last = infos.losses[..., 0].mean(), infos.losses[..., -1].mean()
            print(f"meta step {int(state.step)}: loss {first:.3f}, after five steps {last:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
