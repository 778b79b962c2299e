"""Runs that are stopped, that fail and that go on: what they leave, and what they say."""

import dataclasses
import json
import signal
import struct
import sys
import threading

import chex
import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2

import tiny_run
from reptile_jax import meta_training, runs, signals
from reptile_jax.json_files import keep_json_lines, write_json
from test_checkpoint import files_of_at_most


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was left alone."""
    folder = runs.create(tmp_path_factory.mktemp("whole") / "run", "tiny", tiny_run.CONFIG)
    tiny_run.train(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return runs.create(tmp_path / "run", "tiny", tiny_run.CONFIG)


def assert_same(one, other):
    tiny = tiny_run.problem()
    chex.assert_trees_all_equal(*(runs.restore(folder, tiny) for folder in (one, other)))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def steps_of(file, field="step"):
    return [json.loads(line)[field] for line in file.read_text().splitlines()]


def at(step, act):
    """An `on_metrics` that acts once, at a meta step."""
    done = []

    def on_metrics(_, now, row):
        losses = {"first_loss", "last_loss", "gradient_norm"}
        assert set(row) == {*losses, "tasks_left_out", "failed_in_a_row"}
        if now == step and not done:
            done.append(act())

    return on_metrics


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_after_the_dispatch_and_the_run_goes_on(whole, folder, number, capsys):
    before = handlers()
    stop = at(14, lambda: signal.raise_signal(number))
    with pytest.raises(signals.Interrupted) as info, runs.resumable(folder):
        tiny_run.train(folder, on_metrics=stop)
    assert info.value.signum == number
    go_on = f"stopped at meta step 14; go on with: reptile-jax train --resume {folder}"
    assert str(info.value) == go_on
    assert handlers() == before
    assert "once more leaves at once" in capsys.readouterr().out
    assert int(runs.restore(folder, tiny_run.problem()).step) == 14
    assert steps_of(folder / "times.jsonl", "to")[-1] == 14
    tiny_run.train(folder)
    assert_same(whole, folder)
    assert handlers() == before


def test_a_signal_at_the_last_step_is_not_lost(folder):
    with pytest.raises(signals.Interrupted, match="stopped at meta step 24"):
        tiny_run.train(folder, on_metrics=at(24, lambda: signal.raise_signal(signal.SIGTERM)))
    assert int(runs.restore(folder, tiny_run.problem()).step) == 24


def test_a_run_has_one_process_at_a_time(whole, folder):
    with runs.resumable(folder):
        with pytest.raises(ValueError, match=f"another process is at work on {folder}"):
            with runs.resumable(folder):
                pass
        with runs.resumable(whole):  # another run is free
            pass
    with runs.resumable(folder):
        pass


def test_outside_the_main_thread_no_handlers_are_set(whole, folder):
    before, inside = handlers(), []
    note = at(2, lambda: inside.append(handlers()))
    thread = threading.Thread(target=tiny_run.train, args=(folder, tiny_run.CONFIG, note))
    thread.start()
    thread.join()
    assert inside == [before]
    assert_same(whole, folder)


def test_what_handled_signals_before_does_so_again():
    def mine(*_): ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(signals.Interrupted), signals.handled(signals.interrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)


def crash():
    raise RuntimeError("the power fails")


@pytest.mark.parametrize("cut", [0, 1, 2, 9, 60])
def test_after_a_crash_the_run_is_the_uninterrupted_one(whole, folder, cut):
    with pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=at(14, crash))
    assert int(runs.restore(folder, tiny_run.problem()).step) == 12
    metrics = folder / "metrics.jsonl"
    assert steps_of(metrics)[-1] == 14
    metrics.write_bytes(metrics.read_bytes()[: -cut or None])
    with (folder / "times.jsonl").open("a") as times:
        times.write('{"from": 0, "to": 16, "sec')
    tiny_run.train(folder)
    assert_same(whole, folder)
    assert steps_of(folder / "times.jsonl", "to") == [4, 8, 12, 16, 20, 24]


def test_a_run_that_is_trained_trains_no_more(whole, monkeypatch):
    files = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    state = tiny_run.train(whole, on_metrics=lambda *_: crash())
    assert int(state.step) == 24
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == files


def test_a_damaged_newest_checkpoint_is_made_again(whole, folder, capsys):
    with pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=at(14, crash))
    damaged = folder / "checkpoints" / "12"
    (damaged / "default" / "_METADATA").unlink()
    tiny_run.train(folder, dataclasses.replace(tiny_run.CONFIG, meta_steps=12))
    assert f"{damaged} is damaged (default/_METADATA is missing)" in capsys.readouterr().err
    assert (folder / "checkpoints" / "damaged-12").is_dir()
    tiny_run.train(folder)
    assert_same(whole, folder)


def overflow(*ranges):
    """A change of the learner: in these meta steps, counted from 0, all losses overflow."""

    def change(learner):
        for steps in ranges:
            learner = tiny_run.overflowing(learner, steps)
        return learner

    return change


def test_training_gives_up_when_nothing_is_finite_and_leaves_a_good_checkpoint(whole, folder):
    with pytest.raises(FloatingPointError, match="in 7 meta steps in a row, before meta step 16"):
        tiny_run.train(folder, change=overflow(range(9, 16)))
    left = runs.restore(folder, tiny_run.problem())
    assert int(left.step) == 16
    assert steps_of(folder / "metrics.jsonl")[-1] == 16
    assert steps_of(folder / "metrics.jsonl", "first_loss")[-3:] == [None] * 3
    good = runs.create(folder.parent / "good", "tiny", tiny_run.CONFIG)
    before = tiny_run.train(good, dataclasses.replace(tiny_run.CONFIG, meta_steps=9))
    chex.assert_trees_all_equal(left._replace(step=before.step), before)


@pytest.mark.parametrize("bad", [[range(9, 15)], [range(1, 7), range(8, 14), range(18, 24)]])
def test_fewer_failures_in_a_row_are_borne(folder, bad):
    state = tiny_run.train(folder, change=overflow(*bad))
    assert int(state.step) == 24
    left_out = sum(steps_of(folder / "metrics.jsonl", "tasks_left_out"))
    assert left_out == 2 * sum(map(len, bad))


def test_a_run_that_goes_on_gives_up_where_it_would_have(folder):
    """Steps 8 to 14 fail, seven in a row; it is stopped after four of them."""
    change = overflow(range(8, 24))
    stop = at(12, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(signals.Interrupted, match="stopped at meta step 12"):
        tiny_run.train(folder, on_metrics=stop, change=change)
    assert steps_of(folder / "metrics.jsonl", "failed_in_a_row") == [0, 0, 0, 0, 2, 4]
    with pytest.raises(FloatingPointError, match="in 7 meta steps in a row, before meta step 16"):
        tiny_run.train(folder, change=change)


def test_parameters_that_are_not_finite_are_not_saved(folder):
    def change(learner):
        def step(state, draws):
            state, info = learner.step(state, draws)
            scale = jnp.where(state.step == 10, jnp.inf, 1.0)
            return state._replace(params=jax.tree.map(lambda w: w * scale, state.params)), info

        return learner._replace(step=step)

    with pytest.raises(FloatingPointError, match="parameters are not finite at meta step 12"):
        tiny_run.train(folder, change=change)
    assert int(runs.restore(folder, tiny_run.problem()).step) == 8


def test_a_full_disk_is_named_and_the_run_goes_on_later(whole, folder):
    with pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=at(14, crash))
    size = (folder / "metrics.jsonl").stat().st_size - 20
    with files_of_at_most(size), pytest.raises(OSError, match="File too large") as info:
        tiny_run.train(folder)
    assert info.value.filename.startswith(str(folder / "metrics.jsonl"))
    assert int(runs.restore(folder, tiny_run.problem()).step) == 12
    tiny_run.train(folder)
    assert_same(whole, folder)


def test_a_broken_last_line_is_dropped_wherever_it_was_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "note": "é"}\n'.encode(), '{"step": 2, "note": "θ"}'.encode()]
    for kept in range(len(lines[1]) + 1):
        file.write_bytes(lines[0] + lines[1][:kept])
        keep_json_lines(file, lambda row: row["step"] < 5)
        whole_line = kept == len(lines[1])
        assert file.read_bytes() == lines[0] + (lines[1] + b"\n" if whole_line else b"")


def test_a_broken_line_in_between_is_named_and_nothing_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is not JSON"):
        keep_json_lines(file, lambda row: True)
    assert len(file.read_text().splitlines()) == 3
    for line in ('{"loss": 2}', '{"step": "2"}'):
        file.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
        with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is of no run"):
            keep_json_lines(file, lambda row: row["step"] <= 2)
        assert len(file.read_text().splitlines()) == 3


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    write_json(file, {"a": 1})
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_json(file, {"a": "b" * 1000})
    assert json.loads(file.read_text()) == {"a": 1}


def test_tensorboard_shows_the_metrics_of_a_run_that_went_on(whole, folder):
    with meta_training.tensorboard() as show, pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=lambda *row: show(*row) or (row[1] == 14 and crash()))
    with meta_training.tensorboard() as show:
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
        meta_training.tensorboard(),
    ):
        pass
