"""Meta-training that leaves metrics and checkpoints in a run's folder, and goes on from them."""

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import reptile_jax as rj
from reptile_jax.app import processes, signals, terminal
from reptile_jax.app.config import Config
from reptile_jax.app.json_files import append_json_line, read_json_lines, write_json_lines

OnMetrics: TypeAlias = Callable[[Path, int, dict[str, Any]], Any]  # (folder, step, metrics)


def meta_train(
    learner: rj.MetaLearner,
    state: rj.MetaState,
    tasks: rj.TaskDistribution,
    key: jax.Array,
    config: Config,
    *,
    title: str,
    folder: Path | None = None,
    on_metrics: OnMetrics | None = None,
) -> rj.MetaState:
    """Trains with a progress bar and, given a run's folder, leaves metrics and checkpoints there.

    Every dispatch adds one line to `metrics.jsonl`: the step, and over the dispatch the mean loss
    of the first and of the last inner step, the mean norm of the meta-gradient, the tasks that were
    not finite, and how many meta steps in a row, up to its end, had none that was. After each
    checkpoint a line of `times.jsonl` says how many seconds the training took from one step to
    another. A state that has been restored goes on from its step.

    Args:
      config: how many meta steps, tasks in each, meta steps in a dispatch and between checkpoints
        (there is always one at the end), and without a finite task until training gives up.
      folder: the run's; None leaves nothing behind.
      on_metrics: called with the folder, the step and the line of metrics after every dispatch.

    Raises:
      signals.Interrupted: after a SIGINT or SIGTERM: the dispatch in flight is finished and saved.
      FloatingPointError: if training gives up, or the parameters are not finite when it is to save
        them; the newest checkpoint is good.
    """
    processes.check_told_the_same(config)
    record = None
    if folder is not None:
        record = _Record(folder, int(state.step), config.steps_per_dispatch, on_metrics)
    failed, stop, stops = 0 if record is None else record.failed, [], False
    loop = rj.train(
        learner,
        state,
        tasks,
        key,
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    )
    saves = contextlib.nullcontext() if record is None else signals.handled(stop.append, _wait)
    with terminal.Bar(title, config.meta_steps, "meta steps", int(state.step)) as bar, saves:
        for state, infos in loop:
            failed, most_failed = _failed_in_a_row(infos, failed)
            row, step = {**_summary(infos), "failed_in_a_row": failed}, int(state.step)
            bar.update(step, "loss {first_loss} -> {last_loss}".format(**row))
            gives_up = most_failed >= config.give_up_after
            if record is not None:
                record.add(step, row)
                stops = processes.any_process(bool(stop))
                due = step == config.meta_steps or step - record.saved >= config.save_every
                if due or stops or gives_up:
                    record.save(state)
            if gives_up:
                raise FloatingPointError(
                    f"in {config.give_up_after} meta steps in a row, before meta step {step}, no "
                    "task had a finite loss and gradient, so nothing was learnt: look at the loss "
                    "and the data, or lower the inner rate."
                )
            if stops:
                break
    # A signal after the last of these questions stops all processes too.
    if stops or (record is not None and processes.any_process(bool(stop))):
        message = f"stopped at meta step {int(state.step)}"
        raise signals.Interrupted((stop or [signal.SIGTERM])[0], message, together=True)
    return state


def _wait() -> None:
    terminal.say("stopping after the dispatch in flight; once more leaves at once")


class _Record:
    """What a training leaves in its run's folder.

    It keeps the lines up to the step that training resumes from. Lost lines are reported, and
    marked in the file. No state depends on them.
    """

    def __init__(self, folder: Path, first_step: int, dispatch: int, on_metrics: OnMetrics | None):
        self._folder, self._first_step, self._on_metrics = folder, first_step, on_metrics
        self._started = time.monotonic()
        self._metrics, self._times = folder / "metrics.jsonl", folder / "times.jsonl"
        self.saved = first_step
        rows, lost = _with_gaps(_read(self._metrics, "step", first_step), first_step, dispatch)
        for start, end in lost:
            terminal.fail(
                f"{self._metrics} has lost the lines of the meta steps {start} to {end}: they are "
                "a gap in it, and in the learning curve"
            )
        # How many meta steps in a row had no finite task before this training.
        self.failed = rows[-1].get("failed_in_a_row", 0) if rows else 0
        for path, kept in (
            (self._metrics, rows),
            (self._times, _read(self._times, "to", first_step)),
        ):
            if kept or path.exists():
                write_json_lines(path, kept)

    def add(self, step: int, row: dict[str, Any]) -> None:
        """Adds a dispatch's line of metrics."""
        append_json_line(self._metrics, {"step": step, **row})
        if self._on_metrics is not None:
            self._on_metrics(self._folder, step, row)

    def save(self, state: rj.MetaState) -> None:
        """Saves a state, and how long it took to get there."""
        step = int(state.step)
        finite = jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), state.params)
        if not jax.tree.all(finite):
            raise FloatingPointError(
                f"the parameters are not finite at meta step {step}: lower the meta rate. "
                f"The checkpoints in {self._folder} are of earlier steps."
            )
        rj.checkpoint.save(self._folder / "checkpoints", state)
        seconds = round(time.monotonic() - self._started, 1)
        append_json_line(self._times, {"from": self._first_step, "to": step, "seconds": seconds})
        self.saved = step


_FIGURES = ("first_loss", "last_loss", "gradient_norm")


def _read(path: Path, field: str, last: int) -> list[dict[str, Any]]:
    """The lines of a run's file that are whole, whose steps, in `field`, ascend up to `last`."""
    rows, before = [], 0
    for row in read_json_lines(path):
        step, failed = row.get(field), row.get("failed_in_a_row", 0)
        figures = [row.get(name) for name in _FIGURES]
        is_whole = isinstance(failed, int) and failed >= 0
        is_whole &= all(isinstance(figure, int | float | None) for figure in figures)
        if is_whole and isinstance(step, int) and before < step <= last:
            rows.append(row)
            before = step
    return rows


def _with_gaps(
    rows: list[dict[str, Any]], last: int, dispatch: int
) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """Metrics up to the step `last`, with a line without figures for those that are missing.

    Returns:
      The lines, and the first and the last meta step of each gap.
    """
    filled, gaps, before = [], [], 0
    for row in [*rows, None]:
        if row is None:
            end = last
        else:  # a line is of the meta steps since a multiple of `dispatch`, or a gap's
            end = before if "lost" in row else (row["step"] - 1) // dispatch * dispatch
        if end > before:
            gaps.append((before + 1, end))
            empty = dict.fromkeys((*_FIGURES, "tasks_left_out"))
            told = {"failed_in_a_row": 0, "lost": f"meta steps {before + 1} to {end}"}
            filled.append({"step": end, **empty, **told})
        if row is not None:
            filled.append(row)
            before = row["step"]
    return filled, gaps


def _failed_in_a_row(infos: rj.MetaInfo, failed: int) -> tuple[int, int]:
    """Meta steps in a row without a finite task: at the end of a dispatch, and the most in it.

    A run that goes on after it gave up gives up again only when a further step fails.

    Args:
      failed: how many there were at the end of the dispatch before.
    """
    most = 0
    for tasks in np.asarray(infos.finite):
        failed = 0 if tasks.any() else failed + 1
        most = max(most, failed)
    return failed, most


def _summary(infos: rj.MetaInfo) -> dict[str, float | int | None]:
    """A dispatch in a few numbers; None where no task was finite, as JSON has no NaN."""
    finite = np.asarray(infos.finite)
    losses = np.asarray(infos.losses, np.float64)[finite]  # [finite tasks, steps]
    mean = lambda values: float(f"{values.mean():.6g}") if values.size else None
    # Of a task that takes fewer steps than there are, the first losses are zero.
    first = np.argmax(losses != 0, axis=1, keepdims=True)
    return {
        "first_loss": mean(np.take_along_axis(losses, first, axis=1)),
        "last_loss": mean(losses[:, -1]),
        "gradient_norm": mean(np.asarray(infos.gradient_norm, np.float64)),
        "tasks_left_out": int((~finite).sum()),
    }
