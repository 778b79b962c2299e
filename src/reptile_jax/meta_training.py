"""Meta-training that leaves metrics and checkpoints in a run's folder, and goes on from them."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax import checkpoint, processes, report, signals
from reptile_jax.json_files import append_json_line, keep_json_lines
from reptile_jax.reptile import MetaInfo, MetaLearner, MetaState
from reptile_jax.runs import Config
from reptile_jax.tasks import Key, TaskDistribution
from reptile_jax.train import train

OnMetrics: TypeAlias = Callable[[Path, int, dict[str, Any]], Any]  # (folder, step, metrics)


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
