"""The one route of a run, whatever the experiment: configuration, experiment, training, evaluation.

    train       a new run:          configuration → experiment → folder → training → evaluation
    resume      one that stopped:   folder → configuration → experiment → training → evaluation
    evaluate    one that is trained: folder → configuration → experiment → evaluation

Everything that a run leaves is in its folder.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

import reptile_jax as rj
from reptile_jax.app import experiments, pictures, processes, run_folder, scores, terminal
from reptile_jax.app.config import Config, precise
from reptile_jax.app.experiment import Experiment, key
from reptile_jax.app.meta_training import OnMetrics, meta_train
from reptile_jax.app.scores import OURS


def train(
    config: Config,
    data: Path | None = None,
    out: Path | None = None,
    *,
    name: str | None = None,
    on_metrics: OnMetrics | None = None,
    mesh: Mesh | None = None,
) -> Path:
    """Trains, saves, and scores on held-out tasks.

    Args:
      config: what to train.
      data: the folder of the data set, for experiments that read one.
      out: the folder of the run; by default a new one under `runs/`, called by `name`.
      on_metrics: called with the folder, the step and a dict of metrics after every dispatch.
      mesh: the devices that share the tasks.

    Returns:
      The folder of the run.
    """
    # Check first: loading can be slow.
    config.check()
    run_folder.check_free(out)
    experiment = experiments.build(config, data, mesh)
    folder = run_folder.create(out, name or config.experiment, config, experiment.data_facts)
    _run(folder, config, experiment, on_metrics, mesh)
    return folder


def resume(
    folder: Path,
    data: Path | None = None,
    *,
    on_metrics: OnMetrics | None = None,
    mesh: Mesh | None = None,
) -> Path:
    """Goes on with a run from its newest checkpoint, as if it had never stopped.

    Joint training, which some runs are compared with, starts over.
    """
    config, experiment = _open(folder, data, mesh, {})
    _run(folder, config, experiment, on_metrics, mesh)
    return folder


def evaluate(
    folder: Path, data: Path | None = None, *, mesh: Mesh | None = None, **changes: Any
) -> rj.Evaluation:
    """Scores a trained run on held-out tasks.

    Args:
      folder: of the run.
      data: the folder of its data set, or for a run on images of another one, without classes that
        the run was trained on.
      mesh: the devices that share the tasks.
      changes: replace fields of the run's configuration.

    Raises:
      ValueError: for values that do not fit the run or the data set.
    """
    started = time.monotonic()
    # The mesh is for scoring alone: a learner that runs on one device is not to refuse it.
    config, experiment = _open(folder, data, None, changes, is_scored=True)
    if experiment.summary:
        terminal.say(experiment.summary)
    processes.check_told_the_same(config)
    states = {OURS: run_folder.restore(folder, experiment.first_state)}
    told = {} if data is None else {"data": str(data)}
    with precise(config.matmul_precision):
        found = _evaluate(folder, "evaluation", config, experiment, states, started, mesh, told)
    return found[OURS]


def _open(
    folder: Path,
    data: Path | None,
    mesh: Mesh | None,
    changes: Mapping[str, Any],
    *,
    is_scored: bool = False,
) -> tuple[Config, Experiment]:
    config = run_folder.load_config(folder)
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(changes.keys() - known):
        raise ValueError(f"{folder} is a run of {config.experiment}, without {', '.join(unknown)}.")
    config = dataclasses.replace(config, **changes)
    config.check()
    experiment = experiments.build(config, data, mesh, folder if is_scored else None)
    run_folder.check_data(folder, experiment.data_facts)
    return config, experiment


def _run(
    folder: Path,
    config: Config,
    experiment: Experiment,
    on_metrics: OnMetrics | None,
    mesh: Mesh | None,
) -> None:
    """Trains from the run's newest state, and the rivals from the first; evaluates them all."""
    started = time.monotonic()
    if experiment.summary:
        terminal.say(experiment.summary)
    train_key = key(config.seed, "training")
    with run_folder.resumable(folder), precise(config.matmul_precision):
        state = meta_train(
            experiment.learner,
            run_folder.restore_or_start(folder, experiment.first_state),
            experiment.training_tasks,
            train_key,
            config,
            title=experiment.title,
            folder=folder,
            on_metrics=on_metrics,
        )
        states = {OURS: state}
        for name, tasks in experiment.rivals.items():
            states[name] = experiment.first_state()
            if tasks is not None:
                states[name] = meta_train(
                    experiment.learner, states[name], tasks, train_key, config, title=name
                )
        terminal.say(f"trained in {time.monotonic() - started:.0f} s")
        _evaluate(folder, "results", config, experiment, states, started, mesh)
    terminal.say(f"{time.monotonic() - started:.0f} s in all; the run is in {folder}")


def _evaluate(
    folder: Path,
    name: str,
    config: Config,
    experiment: Experiment,
    states: Mapping[str, rj.MetaState],
    started: float,
    mesh: Mesh | None,
    told: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, rj.Evaluation]:
    """Scores initialisations on the same held-out tasks; shows and stores the scores and `told`."""
    begun = time.monotonic()
    evaluations = {
        label: _score(label, config, experiment, state, mesh) for label, state in states.items()
    }
    step = int(states[OURS].step)
    results = {
        "scores": {label: scores.curves(result) for label, result in evaluations.items()},
        **scores.spreads(experiment, evaluations),
        "score": experiment.main_score,
        "measure": experiment.measure,
        "tasks": config.eval_tasks,
        **told,
        "meta steps": step,
        "evaluation seconds": round(time.monotonic() - begun, 1),
        "config": dataclasses.asdict(config),
    }
    try:
        stored = run_folder.store(folder, name, time.monotonic() - started, results)
    finally:  # what cannot be kept is shown all the same
        scores.tabulate(config, experiment, evaluations, step)
    terminal.say(f"results are in {stored}")
    pictures.keep(stored, config, experiment, states, evaluations)
    pictures.draw(folder)
    return evaluations


def _score(
    label: str, config: Config, experiment: Experiment, state: rj.MetaState, mesh: Mesh | None
) -> rj.Evaluation:
    """Adapts one initialisation to the held-out tasks."""
    start = experiment.initialisation(state)
    given = isinstance(experiment.held_out_tasks, rj.Task)
    with terminal.Bar(f"{label}, held-out tasks", config.eval_tasks, "tasks") as bar:
        return rj.evaluate(
            experiment.loss_fn,
            experiment.score_fn,
            experiment.inner_optimizer,
            start.params,
            experiment.held_out_tasks,
            None if given else key(config.seed, "evaluation"),
            num_tasks=None if given else config.eval_tasks,
            opt_state=start.inner_opt_state,
            start_fn=experiment.start_fn,
            score_every=experiment.score_every,
            tasks_at_once=experiment.tasks_at_once,
            tasks_per_dispatch=100 if jax.default_backend() == "cpu" else 2500,
            report=lambda done, total: bar.update(done),
            mesh=mesh,
        )
