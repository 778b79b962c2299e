"""The pictures of a run, drawn from its folder alone: of the training, the scores and a few tasks.

Beside results.json are scores.png and adaptation.png, with adaptation.npz, which it is drawn from;
beside evaluation.json the same with "evaluation-" before their names. learning_curve.png is of the
training, and report.html has everything.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import reptile_jax as rj
from reptile_jax.app import report, run_folder, terminal
from reptile_jax.app.config import Config
from reptile_jax.app.experiment import Experiment, key
from reptile_jax.app.experiments import EXPERIMENTS
from reptile_jax.app.json_files import check_regular, read_json, read_json_lines, write_whole


def keep(
    results: Path,
    config: Config,
    experiment: Experiment,
    states: Mapping[str, rj.MetaState],
    evaluations: Mapping[str, rj.Evaluation],
) -> None:
    """Keeps, beside a file of results, what a picture shows of the first held-out tasks."""
    if EXPERIMENTS[config.experiment].draw is None:
        return
    arrays: dict[str, Any] = {}
    for label, state in states.items():
        found = evaluations[label]
        if experiment.show_fn is not None:
            found = _shown(config, experiment, state)
        arrays["steps"] = found.steps
        for name, values in found.scores.items():
            values = np.asarray(values)[: experiment.shown]
            same = bool(np.all(values == values[:, :1]))  # at all points of the curve
            with np.errstate(over="ignore"):
                arrays[f"{label}/{name}"] = (values[:, :1] if same else values).astype(np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_whole(_beside(results, "adaptation.npz"), file.getvalue())


def draw(folder: Path) -> list[Path]:
    """Draws all pictures of a run, and the report; returns the files.

    Raises:
      FileNotFoundError: if the folder is not that of a run.
      ValueError: for a run that has not begun, and for files that are damaged.
    """
    from reptile_jax.app import plots  # pictures alone need matplotlib

    config, drawn = run_folder.load_config(folder), []
    rows, found = read_json_lines(folder / "metrics.jsonl"), report.results_of(folder)
    if not rows and not found:
        raise ValueError(f"{folder} has nothing to draw: its training has not begun.")
    if rows:
        with _naming(folder / "metrics.jsonl"):
            drawn.append(_learning_curve(folder, rows))
    show = EXPERIMENTS[config.experiment].draw
    for results in found:
        fields = read_json(results)
        with _naming(results):
            plots.scores(_beside(results, "scores.png"), _measure(fields), fields["scores"])
        drawn.append(_beside(results, "scores.png"))
        arrays = _load(_beside(results, "adaptation.npz"))
        if show is not None and arrays is not None:
            show(_beside(results, "adaptation.png"), *arrays)
            drawn.append(_beside(results, "adaptation.png"))
    with _naming(folder):
        return [*drawn, report.write(folder, drawn)]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """The error names what is damaged: fields that are not as they were raise almost anything."""
    try:
        yield
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _learning_curve(folder: Path, rows: list[dict[str, Any]]) -> Path:
    from reptile_jax.app import plots

    column = lambda name: np.array([row.get(name) for row in rows], np.float64)
    curves = {
        "before the first inner step": (column("step"), column("first_loss")),
        "before the last": (column("step"), column("last_loss")),
    }
    plots.learning_curve(path := folder / "learning_curve.png", folder.name, curves)
    return path


def _shown(config: Config, experiment: Experiment, state: rj.MetaState) -> rj.Evaluation:
    """The first held-out tasks once more, with what a picture shows of them."""
    start = jax.device_get(experiment.initialisation(state))  # this process's own
    tasks, drawn = experiment.held_out_tasks, None
    if isinstance(tasks, rj.Task):
        tasks = jax.tree.map(lambda leaf: leaf[: experiment.shown], tasks)
    else:
        drawn = min(experiment.shown, config.eval_tasks)
    return rj.evaluate(
        experiment.loss_fn,
        experiment.show_fn or experiment.score_fn,
        experiment.inner_optimizer,
        start.params,
        tasks,
        None if drawn is None else key(config.seed, "evaluation"),
        num_tasks=drawn,
        opt_state=start.inner_opt_state,
        start_fn=experiment.start_fn,
        score_every=experiment.score_every,
    )


def _beside(results: Path, name: str) -> Path:
    """The file that belongs to a file of results; those of the training have the plain names."""
    return results.with_name(name if results.stem == "results" else f"{results.stem}-{name}")


def _measure(fields: Mapping[str, Any]) -> str:
    return fields.get("measure", fields["score"])


def _load(path: Path) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]] | None:
    """The steps of the curve's points, and arrays by initialisation and name; None without them."""
    if not path.exists():
        return None
    try:
        check_regular(path)
        # Of a damaged file NumPy would leave what it opens itself open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        steps, found = arrays.pop("steps"), {}
        for name, values in arrays.items():
            label, _, field = name.rpartition("/")
            found.setdefault(label, {})[field] = np.broadcast_to(
                values, (len(values), len(steps), *values.shape[2:])
            )
    except Exception as error:  # a damaged file raises almost anything
        terminal.fail(f"{path} is damaged, and is not drawn: {error}")
        return None
    return steps, found
