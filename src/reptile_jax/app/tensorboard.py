"""A run's metrics as TensorBoard's event files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reptile_jax.app.meta_training import OnMetrics


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
                    purge_step=step,  # drops what was written from here on before a crash
                    filename_suffix=f".{step}",  # else the name has only the second
                )
                stack.callback(writers[folder].close)
            for name, value in metrics.items():
                if value is not None:
                    writers[folder].add_scalar(name, value, step)
            writers[folder].flush()  # a run that goes on does not write them again

        yield on_metrics
