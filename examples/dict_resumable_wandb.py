"""Reptile that goes on where it was stopped, and logs to Weights & Biases where that is installed.

Kill it whenever you like and start it again: it ends with the same parameters, bit for bit.

    python examples/dict_resumable_wandb.py [meta steps]
"""

import contextlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from reptile_jax import checkpoint
from reptile_jax.sinusoids import sinusoids
from reptile_jax.train import train


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - batch.targets) ** 2)


def logger():
    """A function of metrics and step: W&B's, or one that prints."""
    try:
        import wandb
    except ImportError:
        return lambda metrics, step: print(f"meta step {step}: loss {metrics['loss']:.3f}")
    run = wandb.init(project="reptile", id="waves", resume="allow")
    return lambda metrics, step: run.log(metrics, step=step)


def main(meta_steps: int, folder: Path) -> None:
    w_key, v_key = jax.random.split(jax.random.key(0))
    w, v = jax.random.normal(w_key, (1, 16)), jax.random.normal(v_key, (16, 1))
    params = {"w": w, "b": jnp.zeros((1, 16)), "v": 0.3 * v}
    meta_gradient = rj.reptile(loss_fn, optax.adam(0.01))
    learner = rj.meta_learner(meta_gradient, optax.sgd(0.5), inner_state="averaged")
    start, log = learner.init(params), logger()
    with contextlib.suppress(FileNotFoundError):  # at the first start there is no checkpoint
        start = checkpoint.restore(folder, like=start)
    key = jax.random.key(1)
    for state, infos in train(learner, start, sinusoids(), key, until=meta_steps, meta_batch=4):
        log({"loss": float(infos.losses[..., -1].mean())}, int(state.step))
        if int(state.step) % 500 == 0 or int(state.step) == meta_steps:
            checkpoint.save(folder, state)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000, Path("checkpoints/waves"))
