"""Trainings that are stopped, that fail and that go on: what they leave, and what they say."""

import dataclasses
import shutil
import signal
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from reptile_jax.app import run_folder, signals
from reptile_jax.app.json_files import read_json_lines, write_json_lines
from tests.app import tiny_run
from tests.app.tiny_run import assert_same, at, crash, handlers, steps_of
from tests.test_checkpoint import files_of_at_most


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_stops_after_the_dispatch_and_the_run_goes_on(whole, folder, number, capsys):
    before = handlers()
    stop = at(14, lambda: signal.raise_signal(number))
    with pytest.raises(signals.Interrupted) as info, run_folder.resumable(folder):
        tiny_run.train(folder, on_metrics=stop)
    assert info.value.signum == number
    go_on = f"stopped at meta step 14; go on with: reptile-jax train --resume {folder}"
    assert str(info.value) == go_on
    assert handlers() == before
    assert "once more leaves at once" in capsys.readouterr().out
    assert int(tiny_run.restored(folder).step) == 14
    assert steps_of(folder / "times.jsonl", "to")[-1] == 14
    tiny_run.train(folder)
    assert_same(whole, folder)
    assert handlers() == before


def test_a_signal_at_the_last_step_is_not_lost(folder):
    with pytest.raises(signals.Interrupted, match="stopped at meta step 24"):
        tiny_run.train(folder, on_metrics=at(24, lambda: signal.raise_signal(signal.SIGTERM)))
    assert int(tiny_run.restored(folder).step) == 24


def test_outside_the_main_thread_no_handlers_are_set(whole, folder):
    before, inside = handlers(), []
    note = at(2, lambda: inside.append(handlers()))
    thread = threading.Thread(target=tiny_run.train, args=(folder, tiny_run.CONFIG, note))
    thread.start()
    thread.join()
    assert inside == [before]
    assert_same(whole, folder)


@pytest.fixture(scope="module")
def crash_at_14(tmp_path_factory):
    folder = tiny_run.new_run(tmp_path_factory.mktemp("crash") / "tiny")
    with pytest.raises(RuntimeError):
        tiny_run.train(folder, on_metrics=at(14, crash))
    return folder


@pytest.fixture
def crashed(crash_at_14, tmp_path):
    """A tiny run that crashed at the meta step 14."""
    return shutil.copytree(crash_at_14, tmp_path / "tiny")


@pytest.mark.parametrize("cut", [0, 1, 2, 9, 60])
def test_after_a_crash_the_run_is_the_uninterrupted_one(whole, crashed, cut):
    assert int(tiny_run.restored(crashed).step) == 12
    metrics = crashed / "metrics.jsonl"
    assert steps_of(metrics)[-1] == 14
    metrics.write_bytes(metrics.read_bytes()[: -cut or None])
    with (crashed / "times.jsonl").open("a") as times:
        times.write('{"from": 0, "to": 16, "sec')
    tiny_run.train(crashed)
    assert_same(whole, crashed)
    assert steps_of(crashed / "times.jsonl", "to") == [4, 8, 12, 16, 20, 24]


def zeroed(content):
    return bytes(len(content))


def without_the_first(content):
    return content.split(b"\n", 1)[1]


def without_the_third(content):
    lines = content.splitlines(keepends=True)
    return b"".join([*lines[:2], b"\0" * 40 + b"\n", *lines[3:]])


def cut_at_half(content):
    return content[: len(content) // 2]


DAMAGES = [(Path.unlink, "1 to 12"), (lambda _: b"", "1 to 12"), (zeroed, "1 to 12")]
DAMAGES += [(without_the_first, "1 to 2"), (without_the_third, "5 to 6"), (cut_at_half, "7 to 12")]


@pytest.mark.attack
@pytest.mark.parametrize(("damage", "lost"), DAMAGES)
def test_metrics_that_are_lost_are_said_and_the_run_goes_on(whole, crashed, damage, lost, capsys):
    metrics = crashed / "metrics.jsonl"
    if damage is Path.unlink:
        metrics.unlink()
    else:
        metrics.write_bytes(damage(metrics.read_bytes()))
    with pytest.raises(RuntimeError):
        tiny_run.train(crashed, on_metrics=at(18, crash))
    message = f"{metrics} has lost the lines of the meta steps {lost}: they are a gap in it"
    assert message in capsys.readouterr().err
    tiny_run.train(crashed)
    assert "lost" not in capsys.readouterr().err  # once is enough
    chex.assert_trees_all_equal(*(tiny_run.restored(run) for run in (whole, crashed)))
    rows = read_json_lines(metrics)
    (gap,) = [row for row in rows if "lost" in row]
    assert gap["lost"] == f"meta steps {lost}"
    assert gap["step"] == int(lost.split()[-1])
    assert gap["first_loss"] is None
    good = [row for row in rows if "lost" not in row]
    assert good == [row for row in read_json_lines(whole / "metrics.jsonl") if row in good]
    assert len(good) == 12 - (gap["step"] - int(lost.split()[0]) + 1) // 2


def test_lines_of_an_older_version_are_kept(whole, crashed):
    metrics = crashed / "metrics.jsonl"
    rows = read_json_lines(metrics)
    for row in rows:
        del row["failed_in_a_row"]
    write_json_lines(metrics, rows)
    tiny_run.train(crashed)
    chex.assert_trees_all_equal(*(tiny_run.restored(run) for run in (whole, crashed)))
    assert [row["step"] for row in read_json_lines(metrics)] == steps_of(whole / "metrics.jsonl")


@pytest.mark.attack
def test_times_that_are_damaged_end_no_run(whole, crashed):
    times = crashed / "times.jsonl"
    times.write_bytes(zeroed(times.read_bytes()))
    tiny_run.train(crashed)
    assert_same(whole, crashed)
    assert steps_of(times, "to") == [16, 20, 24]


def test_a_run_that_is_trained_trains_no_more(whole):
    files = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    state = tiny_run.train(whole, on_metrics=lambda *_: crash())
    assert int(state.step) == 24
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == files


def test_a_damaged_newest_checkpoint_is_made_again(whole, crashed, capsys):
    damaged = crashed / "checkpoints" / "12"
    (damaged / "arrays" / "_METADATA").unlink()
    tiny_run.train(crashed, dataclasses.replace(tiny_run.CONFIG, meta_steps=12))
    assert f"{damaged} is damaged (arrays/_METADATA is missing)" in capsys.readouterr().err
    assert (crashed / "checkpoints" / "damaged-12").is_dir()
    tiny_run.train(crashed)
    assert_same(whole, crashed)


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
    left = tiny_run.restored(folder)
    assert int(left.step) == 16
    assert steps_of(folder / "metrics.jsonl")[-1] == 16
    assert steps_of(folder / "metrics.jsonl", "first_loss")[-3:] == [None] * 3
    good = tiny_run.new_run(folder.parent / "good")
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


def test_a_run_that_gave_up_goes_on_when_its_tasks_are_finite_again(folder):
    with pytest.raises(FloatingPointError, match="before meta step 16"):
        tiny_run.train(folder, change=overflow(range(9, 16)))
    other = shutil.copytree(folder, folder.parent / "other")
    assert int(tiny_run.train(folder).step) == 24
    failed = steps_of(folder / "metrics.jsonl", "failed_in_a_row")
    assert failed[-5:] == [7, 0, 0, 0, 0]
    with pytest.raises(FloatingPointError, match="before meta step 18"):  # the eighth in a row
        tiny_run.train(other, change=overflow(range(16, 17)))


def test_parameters_that_are_not_finite_are_not_saved(folder):
    def change(learner):
        def step(state, draws):
            state, info = learner.step(state, draws)
            scale = jnp.where(state.step == 10, jnp.inf, 1.0)
            return state._replace(params=jax.tree.map(lambda w: w * scale, state.params)), info

        return learner._replace(step=step)

    with pytest.raises(FloatingPointError, match="parameters are not finite at meta step 12"):
        tiny_run.train(folder, change=change)
    assert int(tiny_run.restored(folder).step) == 8


def test_a_full_disk_is_named_and_the_run_goes_on_later(whole, crashed):
    size = (crashed / "metrics.jsonl").stat().st_size - 20
    with files_of_at_most(size), pytest.raises(OSError, match="File too large") as info:
        tiny_run.train(crashed)
    assert info.value.filename.startswith(str(crashed / "metrics.jsonl"))
    assert int(tiny_run.restored(crashed).step) == 12
    tiny_run.train(crashed)
    assert_same(whole, crashed)
