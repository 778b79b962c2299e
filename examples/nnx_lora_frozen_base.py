"""LoRA adapters (Hu et al. 2021) on a frozen, pre-trained network in Flax NNX.

The adapters are the parameters; the loss closes over the base. At the end, the script prints the
memory of a meta step of four tasks: so, and with the base, frozen by Optax, as parameters.

    python examples/nnx_lora_frozen_base.py [meta steps]
"""

import sys
from typing import Any

import jax
import optax
from flax import nnx

import reptile_jax as rj


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        linear = lambda m, n: nnx.LoRALinear(m, n, lora_rank=4, rngs=rngs)
        self.first, self.hidden, self.last = linear(1, 256), linear(256, 256), linear(256, 1)

    def __call__(self, x):
        return self.last(nnx.tanh(self.hidden(nnx.tanh(self.first(x)))))


def main(meta_steps: int) -> None:
    graph, lora, base = nnx.split(Network(nnx.Rngs(0)), nnx.LoRAParam, ...)
    error = rj.nn.squared_error(lambda of, x: nnx.merge(graph, of["lora"], of["base"])(x))

    waves, key, sgd = rj.tasks.sinusoids(), jax.random.key(1), optax.sgd(0.01)
    wave = rj.tasks.repeat(waves.sample(key).query, 500)  # one of them, 500 times
    pretraining = lambda base, batch: error({"lora": lora, "base": base}, batch)
    base = rj.inner_loop(pretraining, optax.adam(1e-3), base, wave).params

    loss_fn = lambda lora, batch: error({"lora": lora, "base": base}, batch)
    learner = rj.meta_learner(rj.reptile(loss_fn, sgd), optax.sgd(0.5))
    start = learner.init(lora)
    for state, infos in rj.train(learner, start, waves, key, until=meta_steps, meta_batch=4):
        if int(state.step) % 500 == 0:
            print(f"meta step {int(state.step)}: loss {infos.losses[..., -1].mean():.3f}")

    def megabytes(meta_gradient, params):
        learner = rj.meta_learner(meta_gradient, optax.sgd(0.5), tasks_at_once=4)
        tasks = jax.vmap(waves.sample)(jax.random.split(key, 4))
        step = jax.jit(learner.step, donate_argnums=0).lower(learner.init(params), tasks)
        used: Any = step.compile().memory_analysis()
        return (used.argument_size_in_bytes + used.temp_size_in_bytes) / 1e6

    frozen = optax.chain(sgd, optax.masked(optax.set_to_zero(), {"lora": False, "base": True}))
    outside = megabytes(rj.reptile(loss_fn, sgd), lora)
    outside += sum(leaf.nbytes for leaf in jax.tree.leaves(base)) / 1e6  # a constant: not counted
    inside = megabytes(rj.reptile(error, frozen), {"lora": lora, "base": base})
    print(f"memory: {outside:.2f} MB with the base closed over, {inside:.2f} MB as parameters")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
