"""A run's metrics as TensorBoard reads them."""

import json
import struct
import sys

import pytest
from tensorboardX.proto import event_pb2

from reptile_jax.app import tensorboard
from tests.app import tiny_run
from tests.app.tiny_run import crash


def test_tensorboard_shows_the_metrics_of_a_run_that_went_on(whole, folder):
    with tensorboard.tensorboard() as show, pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=lambda *row: show(*row) or (row[1] == 14 and crash()))
    with tensorboard.tensorboard() as show:
        tiny_run.train(folder, on_metrics=show)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert events(folder / "tensorboard") == {
        row["step"]: pytest.approx(row["first_loss"])
        for row in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    }


def events(folder):
    """The first losses by step, as TensorBoard shows them: a restart voids what it writes again."""
    values = {}
    for file in sorted(folder.iterdir(), key=lambda file: int(file.suffix[1:])):
        content = file.read_bytes()
        while content:  # records: length, its checksum, an event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == event_pb2.SessionLog.START:
                values = {step: value for step, value in values.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "first_loss":
                    values[event.step] = value.simple_value
    return values


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with (
        pytest.raises(ImportError, match=r"pip install \"reptile-jax\[tensorboard\]\""),
        tensorboard.tensorboard(),
    ):
        pass
