"""Reptile that resumes after it was stopped, and logs to Weights & Biases if that is installed.

Kill it at any time and start it again: it ends with the same parameters, bit for bit.

    python examples/dict_resumable_wandb.py [meta steps]
"""

import contextlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"] - batch.targets) ** 2)


def logger():
    """Returns a function that logs metrics of a step: to W&B, or to the terminal."""
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
    learner = rj.meta_learner(meta_gradient, optax.sgd(0.5), inner_opt_state="average")
    start, log = learner.init(params), logger()
    with contextlib.suppress(FileNotFoundError):  # the first start has no checkpoint
        start = rj.checkpoint.restore(folder, like=start)
    waves, key = rj.tasks.sinusoids(), jax.random.key(1)
    for state, infos in rj.train(learner, start, waves, key, until=meta_steps, meta_batch=4):
        log({"loss": float(infos.losses[..., -1].mean())}, int(state.step))
        if int(state.step) % 500 == 0 or int(state.step) == meta_steps:
            rj.checkpoint.save(folder, state)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000, Path("checkpoints/waves"))
