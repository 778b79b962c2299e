"""What a configuration stands for: all that a run trains, scores and shows."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax

import reptile_jax as rj


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Built once, by `experiments.build`; the runner asks the configuration nothing more of it.

    A new experiment is a file with a subclass of `Config` and a function that builds one of these,
    and a line in `experiments.EXPERIMENTS`.
    """

    title: str  # of the training
    learner: rj.MetaLearner
    first_state: Callable[[], rj.MetaState]
    training_tasks: rj.TaskDistribution
    held_out_tasks: rj.TaskDistribution
    loss_fn: Callable[[Any, Any], jax.Array]  # (params, batch) -> scalar, to adapt held-out tasks
    inner_optimizer: optax.GradientTransformation  # to adapt held-out tasks
    # (params, task) -> a dict. Numbers in it are reported by their names; the rest is for `draw`.
    score_fn: Callable[[Any, rj.Task], dict[str, Any]]
    main_score: str  # the name of the score that sums up the run

    measure: str = "score"  # what the scores measure: "accuracy"
    percent: bool = False  # scores are shown in per cent
    setting: str = ""  # of the held-out tasks, for the table's title: "5-way 1-shot"
    score_every: int | None = None  # inner steps; by default only the start and the end are scored
    tasks_at_once: int | None = None  # in evaluation, as in `rj.evaluate`
    summary: str = ""  # of the data, said before training
    # What held-out tasks start from, given the trained state.
    initialisation: Callable[[rj.MetaState], rj.MetaState] = lambda state: state
    # Other initialisations to compare with: the first state, trained on these tasks, if any.
    rivals: Mapping[str, rj.TaskDistribution | None] = dataclasses.field(default_factory=dict)
    # Facts of the data that a resumed run must find again, by the name of the run's JSON file.
    data_facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Draws the run's own picture, from the evaluations of all initialisations by name.
    draw: Callable[[Path, Mapping[str, rj.Evaluation]], None] | None = None


def key(seed: int, use: str) -> jax.Array:
    """The random key of a run for one use: "init", "training" or "evaluation"."""
    return jax.random.fold_in(jax.random.key(seed), ("init", "training", "evaluation").index(use))
