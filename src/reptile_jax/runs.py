"""A run: a folder that holds its configuration, metrics, checkpoints, results and pictures."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reptile_jax import checkpoint, presets, processes, report, signals
from reptile_jax.json_files import append_json_line, keep_json_lines, read_json, write_json
from reptile_jax.reptile import LossFn, MetaInfo, MetaLearner, MetaState
from reptile_jax.tasks import Key, TaskDistribution
from reptile_jax.train import train

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

Config: TypeAlias = presets.Sinusoid | presets.FewShotImages
OnMetrics: TypeAlias = Callable[[Path, int, dict[str, Any]], Any]  # (folder, step, metrics)
_KINDS = {"sinusoid": presets.Sinusoid, "few-shot": presets.FewShotImages}


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a configuration stands for."""

    model: Any  # a Flax module
    loss_fn: LossFn
    inner_optimizer: optax.GradientTransformation
    learner: MetaLearner
    first_state: Callable[[], MetaState]


def create(out: Path | None, name: str, config: Config, **files: Any) -> Path:
    """Makes the folder of a new run and writes its configuration there.

    Args:
      out: the folder; by default `runs/<name>`, or the next free `runs/<name>-<number>`.
      files: what else the run needs, by the name of its JSON file.

    Raises:
      FileExistsError: if `out` exists and is not an empty folder: a run is never overwritten.
    """
    folder = out or _make_next(Path("runs") / name)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists, and a run is never overwritten: give another --out, or remove it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    kind = next(kind for kind, made in _KINDS.items() if isinstance(config, made))
    for file, content in files.items():
        write_json(folder / f"{file}.json", content)
    # The last, since with it the folder is that of a run.
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


def restore(folder: Path, problem: Problem) -> MetaState:
    """The newest good state of a run.

    Raises:
      FileNotFoundError: if it was stopped before its first checkpoint.
      ValueError: as `checkpoint.restore`.
    """
    like = jax.eval_shape(problem.first_state)
    return checkpoint.restore(folder / "checkpoints", like, on_damage=report.fail)


def restore_or_start(folder: Path, problem: Problem) -> MetaState:
    """Where a run goes on: at its newest good state, or at its first.

    Raises:
      ValueError: as `checkpoint.restore`, and if its checkpoints have gone.
    """
    try:
        return restore(folder, problem)
    except FileNotFoundError as error:
        times = folder / "times.jsonl"  # a line for each checkpoint there ever was
        if (folder / "results.json").exists() or (times.exists() and times.stat().st_size):
            raise ValueError(
                f"{error} The run had checkpoints: put them back, or start a new run."
            ) from error
        return problem.first_state()


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Inside, the run is this process's alone; if a signal ends that, says how to go on with it.

    Raises:
      ValueError: if another process is at work on the run.
    """
    try:
        with _locked(folder):
            yield
    except signals.Interrupted as stop:
        data = "" if isinstance(load_config(folder), presets.Sinusoid) else " --data DIR"
        command = f"reptile-jax train --resume {shlex.quote(str(folder))}{data}"
        message = f"{stop}; go on with: {command}"
        raise signals.Interrupted(stop.signum, message, together=stop.together) from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock on the run, which the system takes back however the process ends."""
    with (folder / ".lock").open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is at work on {folder}: wait for it, or stop it first."
                ) from error
            except OSError:  # a file system without locks
                pass
        yield


def meta_train(
    folder: Path | None,
    title: str,
    learner: MetaLearner,
    state: MetaState,
    distribution: TaskDistribution,
    key: Key,
    config: Config,
    on_metrics: OnMetrics | None = None,
) -> MetaState:
    """Trains with a progress bar and, given a run's folder, leaves metrics and checkpoints there.

    Every dispatch adds one line to `metrics.jsonl`: the step, and over the dispatch the mean loss
    of the first and of the last inner step, the mean norm of the meta-gradient, the tasks that were
    not finite, and how many meta steps in a row, up to its end, had none that was. After each
    checkpoint a line of `times.jsonl` says how many seconds the training took from one step to
    another. A state that has been restored goes on from its step.

    Args:
      folder: the run's; None leaves nothing behind.
      config: how many meta steps, tasks in each, meta steps in a dispatch and between checkpoints
        (there is always one at the end), and without a finite task until training gives up.
      on_metrics: called with the folder, the step and the line of metrics after every dispatch.

    Raises:
      signals.Interrupted: after a SIGINT or SIGTERM: the dispatch in flight is finished and saved.
      FloatingPointError: if training gives up, or the parameters are not finite when it is to save
        them; the newest checkpoint is good.
    """
    processes.check_told_the_same(config)
    started, first_step = time.monotonic(), int(state.step)
    saved, failed, stop, stops = first_step, 0, [], False
    if folder is not None:
        _forget_after(first_step, folder)
        failed = _failed_before(folder)
    loop = train(
        learner,
        state,
        distribution,
        key,
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    )
    saves = contextlib.nullcontext() if folder is None else signals.handled(stop.append, _wait)
    with report.Bar(title, config.meta_steps, "meta steps", first_step) as bar, saves:
        for state, infos in loop:
            failed, most_failed = _failed_in_a_row(infos, failed)
            row, step = {**_summary(infos), "failed_in_a_row": failed}, int(state.step)
            bar.update(step, "loss {first_loss} -> {last_loss}".format(**row))
            gives_up = most_failed >= config.give_up_after
            if folder is not None:
                append_json_line(folder / "metrics.jsonl", {"step": step, **row})
                if on_metrics is not None:
                    on_metrics(folder, step, row)
                stops = processes.any_process(bool(stop))
                due = step == config.meta_steps or step - saved >= config.save_every
                if due or stops or gives_up:
                    _save(folder, state, first_step, time.monotonic() - started)
                    saved = step
            if gives_up:
                raise FloatingPointError(
                    f"in {config.give_up_after} meta steps in a row, before meta step {step}, no "
                    "task had a finite loss and gradient, so nothing was learnt: look at the loss "
                    "and the data, or lower the inner rate."
                )
            if stops:
                stop = stop or [signal.SIGTERM]
                break
    # One that came after the last dispatch was asked about is no less everybody's.
    if folder is not None and not stops and processes.any_process(bool(stop)):
        stop = stop or [signal.SIGTERM]
    if stop:
        message = f"stopped at meta step {int(state.step)}"
        raise signals.Interrupted(stop[0], message, together=True)
    return state


def _wait() -> None:
    report.say("stopping after the dispatch in flight; once more leaves at once")


def _forget_after(step: int, folder: Path) -> None:
    """Drops what a run wrote after the checkpoint that it goes on from."""
    for name, field in (("metrics.jsonl", "step"), ("times.jsonl", "to")):
        if (folder / name).exists():
            keep_json_lines(folder / name, lambda row, field=field: row[field] <= step)


def _save(folder: Path, state: MetaState, first_step: int, seconds: float) -> None:
    step = int(state.step)
    finite = jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), state.params)
    if not jax.tree.all(finite):
        raise FloatingPointError(
            f"the parameters are not finite at meta step {step}: lower the meta rate. "
            f"The checkpoints in {folder} are of earlier steps."
        )
    checkpoint.save(folder / "checkpoints", state)
    times = {"from": first_step, "to": step, "seconds": round(seconds, 1)}
    append_json_line(folder / "times.jsonl", times)


def _failed_before(folder: Path) -> int:
    """How many meta steps in a row had no finite task where the run goes on."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1]).get("failed_in_a_row", 0) if lines else 0


def _failed_in_a_row(infos: MetaInfo, failed: int) -> tuple[int, int]:
    """Meta steps in a row without a finite task: at the end of a dispatch, and the most in it.

    Args:
      failed: how many there were at the end of the dispatch before.
    """
    most = failed
    for tasks in np.asarray(infos.finite):
        failed = 0 if tasks.any() else failed + 1
        most = max(most, failed)
    return failed, most


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


@contextlib.contextmanager
def tensorboard() -> Iterator[OnMetrics]:
    """Writes metrics as TensorBoard's event files too, to `tensorboard/` in the run's folder.

    Raises:
      ImportError: without tensorboardX, the extra "tensorboard".
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'event files need one package more: pip install "reptile-jax[tensorboard]"'
        ) from error
    with contextlib.ExitStack() as stack:
        writers = {}

        def on_metrics(folder: Path, step: int, metrics: dict[str, Any]) -> None:
            if folder not in writers:
                writers[folder] = SummaryWriter(
                    str(folder / "tensorboard"),
                    purge_step=step,  # what was written from here on, before a crash, is void
                    filename_suffix=f".{step}",  # the name else holds no more than the second
                )
                stack.callback(writers[folder].close)
            for name, value in metrics.items():
                if value is not None:
                    writers[folder].add_scalar(name, value, step)
            writers[folder].flush()  # a run that goes on does not write them again

        yield on_metrics


def finish(folder: Path, name: str, seconds: float, results: dict[str, Any]) -> None:
    """Writes results, with the time taken and the environment, and says where they are.

    They are in `<name>.json`, or the next free `<name>-<number>.json`.
    """
    path = _next_free(folder / f"{name}.json")
    write_json(path, {"seconds": round(seconds, 1), **results, "environment": environment()})
    report.say(f"{seconds:.0f} s; see {path}")


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


def _make_next(path: Path) -> Path:
    """Makes the next free folder; of two runs that start at once each gets its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            (folder := _next_free(path)).mkdir()
            return folder


def _next_free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
