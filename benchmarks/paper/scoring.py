"""The score of a training on tasks of characters set apart, by the paper's evaluation or others."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks.paper import levers
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot

MODES = ("transductive", "non-transductive")


class Evaluation(NamedTuple):
    """How an evaluation differs from the paper's."""

    changes: Mapping[str, Any] = {}  # of the configuration
    mean_scale: float | None = None  # classifiers start from class means; `rj.nn.from_prototypes`
    rate: float = 1.0  # times training's inner rate
    classifier_rate: float = 1.0  # the classifier's, times all others
    distorted: float = 0.0  # how much the support images of each inner step are


PAPER = Evaluation()


def balanced(ways: int, steps: int = 25, **more: Any) -> Evaluation:
    """Mini-batches of one image of each class."""
    changes = {"balanced_eval": True, "eval_batch": ways, "eval_steps": steps}
    return Evaluation(changes, **more)


def scored(
    evaluation: Evaluation,
    config: FewShotConfig,
    inner: optax.GradientTransformation,
    state: rj.MetaState,
    splits: rj.datasets.ImageSplits,
    num_tasks: int,
) -> dict[str, Any]:
    """Accuracies in per cent with 95% intervals over the tasks; the same tasks for every state.

    Args:
      config: at the ways of the held-out tasks.
      inner: training's inner optimiser.
      state: for as many ways.
    """
    config = dataclasses.replace(config, **evaluation.changes)
    model = few_shot.network(config, config.ways)
    loss_fn = few_shot.adaptation_loss(
        config, model, config.eval_batch, balanced=config.balanced_eval
    )
    score_fn = rj.tasks.accuracy(model.apply)
    body, classifier = evaluation.rate, evaluation.rate * evaluation.classifier_rate
    inner = levers.rates(inner, body, classifier)
    tasks: Any = few_shot.held_out_tasks(config, splits)
    if evaluation.distorted:
        tasks = levers.Distorted(tasks, images=evaluation.distorted)

    @jax.jit
    def scores(state, tasks, keys):
        def of_task(key):
            task = tasks.sample(key)
            params = state.params
            if evaluation.mean_scale is not None:
                start = rj.nn.from_prototypes(model, evaluation.mean_scale)
                params = start(params, task.query.support)
            adapted = rj.inner_loop(loss_fn, inner, params, task.support, state.inner_opt_state)
            return score_fn(adapted.params, task)

        return jax.lax.map(of_task, keys)

    key_of = functools.partial(jax.random.fold_in, jax.random.key(1))
    keys = jax.vmap(key_of)(jnp.arange(num_tasks))
    found = jax.device_get(scores(state, tasks, keys))
    half = lambda values: 1.96 * values.std(ddof=1) / np.sqrt(num_tasks)
    return {
        "accuracy": {mode: 100 * float(found[mode].mean()) for mode in MODES},
        "ci95": {mode: 100 * float(half(found[mode])) for mode in MODES},
    }
