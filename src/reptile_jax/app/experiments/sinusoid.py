"""The paper's sine waves (section 4): regression from ten points, beside two other starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app.config import SinusoidConfig
from reptile_jax.app.experiment import Experiment, key

DRAWN_STEPS = (0, 1, 8, 32)  # inner steps in the picture


def build(config: SinusoidConfig, mesh: Mesh | None = None) -> Experiment:
    """Reptile with SGD inside, compared with a random start and one by joint training."""
    model, inner = rj.nn.MLP(), optax.sgd(config.inner_rate)
    apply: Callable[..., Any] = model.apply
    loss_fn = rj.nn.squared_error(apply)
    anneal = optax.linear_schedule(config.meta_rate, 0.0, config.meta_steps)
    # Side by side: networks as small as this gain more from fewer operations than they lose.
    learner = rj.meta_learner(
        rj.reptile(loss_fn, inner), optax.sgd(anneal), tasks_at_once=config.meta_batch, mesh=mesh
    )

    return Experiment(
        title="Reptile",
        learner=learner,
        first_state=lambda: learner.init(
            jax.jit(model.init)(key(config.seed, "init"), jnp.zeros((1, 1)))
        ),
        training_tasks=rj.tasks.sinusoids(steps=config.inner_steps, batch_size=config.inner_batch),
        held_out_tasks=rj.tasks.sinusoids(
            shots=config.eval_shots, steps=config.eval_steps, batch_size=config.eval_shots
        ),
        loss_fn=loss_fn,
        inner_optimizer=inner,
        score_fn=_scoring(apply, loss_fn),
        main_score="error",
        measure="mean squared error",
        setting=f"{config.eval_shots} points given",
        score_every=1,
        tasks_at_once=100,
        rivals={
            "random": None,
            # Reptile with one inner step is joint training: here on the same examples, all at once.
            "joint training": rj.tasks.sinusoids(
                steps=1, batch_size=config.inner_steps * config.inner_batch
            ),
        },
    )


def _scoring(apply: Callable[..., Any], loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Scores by the error; with it, what a picture of the task shows."""

    def score(params, task):
        x, wave = task.query
        given = jax.tree.map(lambda leaf: leaf[0, :, 0], task.support)
        return {
            "error": loss_fn(params, task.query),
            "prediction": apply(params, x)[:, 0],
            "x": x[:, 0],
            "wave": wave[:, 0],
            "given_x": given.inputs,
            "given_y": given.targets,
        }

    return score


def draw(path: Path, steps: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws waves, the points given, and what each initialisation predicts of them."""
    from reptile_jax.app import plots  # the picture alone needs matplotlib

    some = next(iter(shown.values()))
    points = {step: point for point, step in enumerate(steps.tolist()) if step in DRAWN_STEPS}
    plots.adaptation(
        path,
        some["x"][0, 0],
        list(some["wave"][:, 0]),
        list(zip(some["given_x"][:, 0], some["given_y"][:, 0], strict=True)),
        {
            name: [
                {step: outputs[point] for step, point in points.items()}
                for outputs in arrays["prediction"]
            ]
            for name, arrays in shown.items()
        },
    )
