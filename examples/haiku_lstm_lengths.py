"""An LSTM in Haiku on sequences of unequal length: padded, with the lengths in the batch.

A task's target is a weighted sum of a sequence's mean and its last number; each task has weights
of its own. The loss reads the LSTM's output at the last real step, so what the padding contains
does not matter.

    python examples/haiku_lstm_lengths.py [meta steps]
"""

import sys

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


def network(sequences, lengths):
    """sequences `[batch, time, features]`, lengths `[batch]`."""
    lstm = hk.LSTM(32)
    state = lstm.initial_state(len(lengths))
    outputs, _ = hk.dynamic_unroll(lstm, sequences, state, time_major=False)
    last = jnp.asarray(outputs)[jnp.arange(len(lengths)), lengths - 1]
    return hk.Linear(1)(last)[:, 0]


def sequences(key: jax.Array, tasks: int, steps: int, batch: int, longest: int) -> rj.Task:
    weight_key, length_key, key = jax.random.split(key, 3)
    mean, last = jax.random.normal(weight_key, (2, tasks, 1, 1))
    lengths = jax.random.randint(length_key, (tasks, steps, batch), 1, longest + 1)
    x = jax.random.normal(key, (tasks, steps, batch, longest))
    means = jnp.mean(x, -1, where=jnp.arange(longest) < lengths[..., None])
    lasts = jnp.take_along_axis(x, lengths[..., None] - 1, -1)[..., 0]
    return rj.Task((x[..., None], lengths, mean * means + last * lasts))


def main(meta_steps: int) -> None:
    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), jnp.zeros((1, 1, 1)), jnp.ones(1, int))

    def loss_fn(params, batch):
        sequences, lengths, targets = batch
        return jnp.mean((model.apply(params, sequences, lengths) - targets) ** 2)

    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.3)), optax.sgd(0.5))
    draw = jax.jit(lambda key: sequences(key, tasks=4, steps=6, batch=16, longest=8))
    state = learner.init(params)
    for step in range(1, meta_steps + 1):
        state, info = learner.step(state, draw(jax.random.key(step)))
        if step % 200 == 0:
            first, last = info.losses[:, 0].mean(), info.losses[:, -1].mean()
            print(f"meta step {step}: loss {first:.3f}, after five inner steps {last:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
