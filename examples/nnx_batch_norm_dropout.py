"""Few-shot classification of signals with Flax NNX: batch norm with running averages, and dropout.

All that is not a parameter is a model state: the running averages, and dropout's random state, so
that each inner step has a mask of its own. At test time, each signal is classified by itself.

    python examples/nnx_batch_norm_dropout.py [meta steps]
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import reptile_jax as rj


def main(meta_steps: int) -> None:
    rngs, key, inner = nnx.Rngs(0), jax.random.key(1), optax.sgd(0.1)
    network = nnx.Sequential(
        nnx.Linear(32, 64, rngs=rngs),
        nnx.BatchNorm(64, momentum=0.9, rngs=rngs),
        nnx.relu,
        nnx.Dropout(0.1, rngs=rngs),
        nnx.Linear(64, 5, rngs=rngs),
    )
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def loss_fn(params, rest, batch):
        network = nnx.merge(graph, params, rest)
        loss = optax.softmax_cross_entropy_with_integer_labels(network(batch.inputs), batch.targets)
        return loss.mean(), nnx.state(network, nnx.Not(nnx.Param))

    def accuracy(params, rest, task):
        network = nnx.merge(graph, params, rest)
        network.eval()
        return jnp.mean(network(task.query.inputs).argmax(-1) == task.query.targets)

    rng, labels = np.random.default_rng(0), np.repeat(np.arange(250), 20)
    shapes = rng.normal(size=(250, 4)) @ rng.normal(size=(4, 32))
    signals = shapes[labels] + 2 * rng.normal(size=(5000, 32))
    pick = lambda seen: rj.tasks.group_by_class(signals[seen], labels[seen])
    draw = partial(rj.tasks.few_shot, ways=5, shots=5, batch_size=10)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(0.5))
    start, tasks = learner.init(params, rest), draw(pick(labels < 200), steps=8)
    for state, infos in rj.train(learner, start, tasks, key, until=meta_steps, meta_batch=4):
        if int(state.step) % 500 == 0:
            print(f"meta step {int(state.step)}: loss {infos.losses[..., -1].mean():.3f}")
    unseen = draw(pick(labels >= 200), steps=20, query_shots=10)
    last = {"num_tasks": 200, "model_state": state.model_state}
    mean = rj.evaluate(loss_fn, accuracy, inner, state.params, unseen, key, **last).mean
    print(f"held-out accuracy {mean[0]:.3f}, after 20 steps {mean[1]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000)
