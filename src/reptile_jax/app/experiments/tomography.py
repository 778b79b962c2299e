"""Tomography by neural fields: phantoms from few views (Tancik et al. 2021)."""

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
from reptile_jax.app.config import TomographyConfig
from reptile_jax.app.experiment import Experiment, key

VIEWS = (1, 2, 4, 8)  # at evaluation, evenly spaced
NAMES = tuple("1 view" if views == 1 else f"{views} views" for views in VIEWS)
SCORE_EVERY = 10  # inner steps


def build(config: TomographyConfig, mesh: Mesh | None = None) -> Experiment:
    """Reptile with Adam inside, compared with a random start."""
    field = network(config)
    loss_fn = rj.tasks.projection_loss(field.apply)
    inner = optax.adam(config.inner_rate, b1=0.0)
    anneal = optax.linear_schedule(config.meta_rate, 0.0, config.meta_steps)
    learner = rj.meta_learner(
        rj.reptile(loss_fn, inner), optax.sgd(anneal), inner_opt_state="average", mesh=mesh
    )

    def first_state() -> rj.MetaState:
        first = jax.jit(field.init)(key(config.seed, "init"), jnp.zeros((1, 2)))
        return learner.init(first)

    return Experiment(
        title="Reptile",
        learner=learner,
        first_state=first_state,
        training_tasks=training_tasks(config),
        held_out_tasks=FewViews(config.size, config.eval_steps),
        loss_fn=_together(loss_fn),
        inner_optimizer=inner,
        initialisation=_for_each_number,
        score_fn=_scoring(rj.tasks.psnr(field.apply)),
        show_fn=_showing(field.apply, config.size),
        main_score="4 views",
        measure="PSNR in dB",
        setting=f"phantoms of {config.size} x {config.size} pixels",
        score_every=SCORE_EVERY if config.eval_steps % SCORE_EVERY == 0 else None,
        rivals={"random": None},
    )


def network(config: TomographyConfig) -> rj.nn.Field:
    """The run's field."""
    return rj.nn.Field(config.features, config.width, scale=config.scale)


def training_tasks(config: TomographyConfig) -> rj.tasks.Phantoms:
    """The run's phantoms, seen from random angles."""
    return rj.tasks.phantoms(
        size=config.size,
        views=config.views,
        steps=config.inner_steps,
        batch_size=config.inner_views,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FewViews:
    """Phantoms, each to be reconstructed from 1, 2, 4 and 8 views: four fits in one task."""

    size: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: jax.Array) -> rj.Task:
        """Support: `Views` by their number, in each step. Query: the most views and the image."""
        tasks = {
            name: few_views(self.size, views, self.steps).sample(key)
            for name, views in zip(NAMES, VIEWS, strict=True)
        }
        support = {name: task.support.examples for name, task in tasks.items()}
        return rj.Task(rj.tasks.repeat(support, self.steps), tasks[NAMES[-1]].query)


def few_views(size: int, views: int, steps: int) -> rj.tasks.Phantoms:
    """Held-out phantoms: the same ones for each number of views."""
    return rj.tasks.phantoms(
        size=size, views=views, steps=steps, batch_size=None, evenly_spaced=True
    )


# The four fits are independent: their parameters are stacked, and the loss is the sum of theirs.
def _for_each_number(state: rj.MetaState) -> rj.MetaState:
    stack = lambda leaf: jnp.stack([leaf] * len(VIEWS)) if leaf.ndim else leaf  # a count stays one
    stacked = jax.tree.map(stack, (state.params, state.inner_opt_state))
    return state._replace(params=stacked[0], inner_opt_state=stacked[1])


def _each(params: Any) -> Mapping[str, Any]:
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], params) for i, name in enumerate(NAMES)}


def _together(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    def loss_of_all(params, batch):
        return sum(loss_fn(own, batch[name]) for name, own in _each(params).items())

    return loss_of_all


def _scoring(psnr: Callable[..., Any]) -> Callable[..., Any]:
    def score(params, task):
        return {name: psnr(own, task) for name, own in _each(params).items()}

    return score


def _showing(apply: Callable[..., Any], size: int) -> Callable[..., Any]:
    def show(params, task):
        images = [rj.tasks.field_image(apply, own, size) for own in _each(params).values()]
        return {"reconstruction": jnp.stack(images), "phantom": task.query.image}

    return show


def draw(path: Path, steps: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws a held-out phantom and its reconstructions after the last inner step."""
    from reptile_jax.app import plots  # the picture alone needs matplotlib

    del steps
    phantom = next(iter(shown.values()))["phantom"][0, -1]
    found = {name: arrays["reconstruction"][0, -1] for name, arrays in shown.items()}
    plots.reconstructions(path, phantom, NAMES, found)
