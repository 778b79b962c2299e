"""Signals at a meta step of a training."""

import signal

from reptile_jax.app import meta_training
from reptile_jax.app.json_files import append_json_line


def stop_at(step, number, monkeypatch):
    """Sends a signal at a meta step, and leaves a broken line in the metrics."""

    def stop(path, row, write=append_json_line):
        write(path, row)
        if path.name == "metrics.jsonl" and row["step"] == step:
            with path.open("a") as cut_short:
                cut_short.write('{"step": 3')
            signal.raise_signal(number)

    monkeypatch.setattr(meta_training, "append_json_line", stop)
