"""A run: a folder that holds its configuration, metrics, checkpoints, results and pictures."""

import dataclasses
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from reptile_jax import checkpoint, presets, report
from reptile_jax.reptile import MetaInfo, MetaLearner, MetaState
from reptile_jax.tasks import Key, TaskDistribution
from reptile_jax.train import train

Config: TypeAlias = presets.Sinusoid | presets.FewShotImages
_KINDS = {"sinusoid": presets.Sinusoid, "few-shot": presets.FewShotImages}


def create(out: Path | None, name: str, config: Config) -> Path:
    """Makes the folder of a new run and writes its configuration there.

    Args:
      out: the folder; by default `runs/<name>`, or the next free `runs/<name>-<number>`.

    Raises:
      FileExistsError: if `out` exists and is not an empty folder: a run is never overwritten.
    """
    folder = out or _next_free(Path("runs") / name)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists, and a run is never overwritten: give another --out, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    kind = next(kind for kind, made in _KINDS.items() if isinstance(config, made))
    write_json(folder / "config.json", {"kind": kind, **dataclasses.asdict(config)})
    return folder


def load_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
      FileNotFoundError: if the folder is not that of a run.
      ValueError: if the configuration is of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.json.")
    fields = read_json(path)
    try:
        config = _KINDS[fields.pop("kind")](**fields)
        presets.check(config)
        return config
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this version of reptile_jax: {error}.") from error


def meta_train(
    folder: Path | None,
    title: str,
    learner: MetaLearner,
    state: MetaState,
    distribution: TaskDistribution,
    key: Key,
    *,
    until: int,
    meta_batch: int,
    steps_per_dispatch: int,
    save_every: int | None = None,
) -> MetaState:
    """Trains with a progress bar and, given a run's folder, leaves metrics and checkpoints there.

    Every dispatch adds one line to `metrics.jsonl`: the step, and over the dispatch the mean loss
    of the first and of the last inner step, the mean norm of the meta-gradient, and the tasks that
    were not finite. After each checkpoint a line of `times.jsonl` says how many seconds the
    training took from one step to another. A state that has been restored goes on from its step.

    Args:
      folder: the run's; None leaves nothing behind.
      save_every: meta steps between checkpoints; there is always one at the end.
    """
    started, first_step = time.monotonic(), int(state.step)
    if folder is not None and (folder / "metrics.jsonl").exists():
        report.keep_json_lines(folder / "metrics.jsonl", lambda row: row["step"] <= first_step)
    saved = first_step
    with report.Bar(title, until, "meta steps", first_step) as bar:
        loop = train(
            learner,
            state,
            distribution,
            key,
            until=until,
            meta_batch=meta_batch,
            steps_per_dispatch=steps_per_dispatch,
        )
        for state, infos in loop:
            row, step = _summary(infos), int(state.step)
            bar.update(step, "loss {first_loss} -> {last_loss}".format(**row))
            if folder is None:
                continue
            report.append_json_line(folder / "metrics.jsonl", {"step": step, **row})
            if step == until or step - saved >= (save_every or until):
                checkpoint.save(folder / "checkpoints", state)
                saved, seconds = step, round(time.monotonic() - started, 1)
                times = {"from": first_step, "to": step, "seconds": seconds}
                report.append_json_line(folder / "times.jsonl", times)
    return state


def _summary(infos: MetaInfo) -> dict[str, float | int | None]:
    """A dispatch in a few numbers; None where no task was finite, as JSON has no NaN."""
    finite = np.asarray(infos.finite)
    losses = np.asarray(infos.losses, np.float64)[finite]  # [finite tasks, steps]
    mean = lambda values: float(f"{values.mean():.6g}") if values.size else None
    return {
        "first_loss": mean(losses[:, 0]),
        "last_loss": mean(losses[:, -1]),
        "gradient_norm": mean(np.asarray(infos.gradient_norm, np.float64)),
        "tasks_left_out": int((~finite).sum()),
    }


def finish(folder: Path, name: str, seconds: float, results: dict[str, Any]) -> None:
    """Writes results, with the time taken and the environment, and says where they are.

    They are in `<name>.json`, or the next free `<name>-<number>.json`.
    """
    path = _next_free(folder / f"{name}.json")
    write_json(path, {"seconds": round(seconds, 1), **results, "environment": environment()})
    report.say(f"{seconds:.0f} s; see {path}")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file for people to read."""
    path.write_text(to_json(value) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is damaged, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def to_json(value: Any) -> str:
    """JSON for people to read, of what `report.plain` can turn into it."""
    return json.dumps(report.plain(value), indent=2, allow_nan=False)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the configuration."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.device_kind} x {jax.device_count()}",
        "machine": platform.machine(),
    }


def _next_free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
