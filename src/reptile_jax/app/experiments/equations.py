"""Networks that solve a family of differential equations, beside two other starts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app.config import EquationsConfig
from reptile_jax.app.experiment import Experiment, key

SCORE_EVERY = 10  # inner steps
DRAWN_STEPS = 100  # inner steps in the picture, or as many as there are
GRID = (64, 16)  # points of the exact solution in x and t


def build(config: EquationsConfig, mesh: Mesh | None = None) -> Experiment:
    """Reptile with Adam inside, compared with a random start and one by joint training."""
    model = rj.nn.MLP((*config.hidden, 1))
    loss_fn = rj.tasks.residual_loss(model.apply)
    # Without momentum, as in the paper's experiments.
    inner, adapting = (optax.adam(rate, b1=0.0) for rate in (config.inner_rate, config.eval_rate))

    def first_state() -> rj.MetaState:
        first = jax.jit(model.init)(key(config.seed, "init"), jnp.zeros((1, 2)))
        return learner.init(first)

    anneal = optax.linear_schedule(config.meta_rate, 0.0, config.meta_steps)
    learner = rj.meta_learner(
        rj.reptile(loss_fn, inner), optax.sgd(anneal), inner_opt_state="average", mesh=mesh
    )
    eval_steps = config.eval_steps
    return Experiment(
        title="Reptile",
        learner=learner,
        first_state=first_state,
        training_tasks=tasks(config, config.inner_steps),
        held_out_tasks=tasks(config, eval_steps, config.eval_viscosity or config.viscosity),
        loss_fn=loss_fn,
        inner_optimizer=adapting,
        score_fn=_scoring(model.apply, loss_fn),
        show_fn=_showing(model.apply),
        main_score="error",
        measure="residual loss, relative error",
        setting="viscosities {:g} to {:g}".format(*(config.eval_viscosity or config.viscosity)),
        score_every=SCORE_EVERY if eval_steps % SCORE_EVERY == 0 else None,
        rivals={"random": None, "joint training": Mixed(tasks(config, 1), config.inner_steps)},
    )


def tasks(
    config: EquationsConfig, steps: int, viscosity: tuple[float, float] | None = None
) -> rj.tasks.Equations:
    """The run's family, by default at the viscosities of training."""
    family = {"burgers": rj.tasks.burgers, "heat": rj.tasks.heat}[config.equation]
    return family(
        viscosity=viscosity or config.viscosity,
        horizon=config.horizon,
        points=config.points,
        initial_points=max(1, config.points // 4),
        boundary_points=max(1, config.points // 10),
        steps=steps,
        grid=GRID,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mixed:
    """Another equation at every inner step: training on it is joint training."""

    family: rj.tasks.Equations  # of one inner step
    steps: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: jax.Array) -> rj.Task:
        """As many equations as steps; no query set."""
        each = jax.vmap(self.family.sample)(jax.random.split(key, self.steps)).support
        return rj.Task(jax.tree.map(lambda leaf: leaf[:, 0], each))


def _scoring(apply: Callable[..., Any], loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    error = rj.tasks.relative_error(apply)
    return lambda params, task: {
        "loss": loss_fn(params, task.query),
        "error": error(params, task),
    }


def _showing(apply: Callable[..., Any]) -> Callable[..., Any]:
    def show(params, task):
        points, exact = task.query.solution
        by_time = lambda u: u.reshape(*reversed(GRID))
        return {
            "prediction": by_time(apply(params, points)),
            "exact": by_time(exact),
            "points": points,
            "viscosity": task.query.viscosity,
        }

    return show


def draw(path: Path, steps: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws exact solutions, and what each initialisation makes of them after some steps."""
    from reptile_jax.app import plots  # the picture alone needs matplotlib

    some = next(iter(shown.values()))
    point = int(np.searchsorted(steps, min(DRAWN_STEPS, steps[-1])))
    plots.solutions(
        path,
        float(some["points"][0, 0, -1, 1]),
        [f"ν = {viscosity:.3g}" for viscosity in some["viscosity"][:, 0]],
        some["exact"][:, 0],
        {name: arrays["prediction"][:, point] for name, arrays in shown.items()},
        int(steps[point]),
    )
