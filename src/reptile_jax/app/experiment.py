"""What a configuration stands for: all that a run trains, scores and shows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import reptile_jax as rj


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Built once, by `experiments.build`; besides it, the runner reads only the fields of `Config`.

    A new experiment is a file with a subclass of `Config` and a function that builds one of these,
    and a line in `experiments.EXPERIMENTS`.
    """

    # Training.
    title: str  # beside the progress bar
    learner: rj.MetaLearner
    first_state: Callable[[], rj.MetaState]
    training_tasks: rj.TaskDistribution

    # Evaluation: held-out tasks are adapted to and scored.
    held_out_tasks: rj.TaskDistribution | rj.Task  # to draw `Config.eval_tasks` of, or as many
    loss_fn: Callable[[Any, Any], jax.Array]  # (params, batch) -> scalar
    inner_optimizer: optax.GradientTransformation
    # (params, task) -> a dict. Numbers in it are reported by their names.
    score_fn: Callable[[Any, rj.Task], dict[str, Any]]
    main_score: str  # the name of the score that sums up the run
    score_every: int | None = None  # inner steps; by default only the start and the end are scored
    tasks_at_once: int | None = None  # as in `rj.evaluate`
    # What held-out tasks start from, given the trained state.
    initialisation: Callable[[rj.MetaState], rj.MetaState] = lambda state: state
    # (params, task) -> where that task starts from there; as in `rj.evaluate`.
    start_fn: Callable[[Any, rj.Task], Any] | None = None
    # Other initialisations to compare with: the first state, trained on these tasks, if any.
    rivals: Mapping[str, rj.TaskDistribution | None] = dataclasses.field(default_factory=dict)

    # Data: facts that a resumed run must find again, by the name of the run's JSON file.
    data_facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    # Presentation.
    summary: str = ""  # of the data, said before training
    measure: str = "score"  # what the scores measure: "accuracy"
    percent: bool = False  # scores are shown in per cent
    setting: str = ""  # of the held-out tasks, for the table's title: "5-way 1-shot"
    # What a picture shows of a few held-out tasks: (params, task) -> a dict of arrays. By default
    # what `score_fn` gives. `experiments.Entry.draw` draws it.
    show_fn: Callable[[Any, rj.Task], dict[str, Any]] | None = None
    shown: int = 3  # tasks in that picture
    # Every held-out task is somebody's: the results also say how much they differ.
    reports_spread: bool = False


def key(seed: int, use: str) -> jax.Array:
    """The random key of a run for one use: "init", "training" or "evaluation"."""
    return jax.random.fold_in(jax.random.key(seed), ("init", "training", "evaluation").index(use))
