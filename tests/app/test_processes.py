"""Real processes on this machine: they work as one, and do not outlive each other for long."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from reptile_jax.app import cli, processes, run_folder, runner, signals
from tests.app import together

ROOT = Path(__file__).parents[2]
TOGETHER = ("-m", "tests.app.together")
BOUND = 120  # seconds; on a machine that does nothing else it is a few

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def jax_has_started():
    """So that no test can change how many devices there are."""
    jax.devices()


@contextlib.contextmanager
def two_processes(tmp_path, command):
    """Starts `command(index, coordinator)` twice, to talk over the loopback; ends both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    both = []
    try:
        for index, log in enumerate(logs):
            with log.open("w") as output:
                argv = [sys.executable, *command(index, coordinator)]
                env = {**os.environ, "XLA_FLAGS": flags}
                to = {"stdout": output, "stderr": subprocess.STDOUT}
                both.append(subprocess.Popen(argv, cwd=ROOT, env=env, **to))
        yield both, logs
    finally:
        for process in both:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("x64")
def test_processes_train_as_one_whatever_their_number(tmp_path):
    """One process starts, two with two devices each go on from its checkpoint, then one again."""
    shared = tmp_path / "shared"
    command = lambda index, coordinator: [
        *(*TOGETHER, str(index), "2", coordinator, str(shared), "8")
    ]
    with jax.numpy_dtype_promotion("standard"):
        together.run(shared, None, until=4)
        with two_processes(tmp_path, command) as (both, logs):
            codes = [process.wait(BOUND) for process in both]
        assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
        ended = together.run(shared, None, until=12)
        expected = together.run(tmp_path / "alone", None, until=12)
    assert sorted(path.name for path in (shared / "checkpoints").iterdir()) == ["12", "8"]
    chex.assert_trees_all_close(ended, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("victim", [0, 1])
def test_what_a_killed_process_leaves_is_gone_on_from_by_another_number(tmp_path, victim):
    shared = tmp_path / "shared"
    shared.mkdir()
    command = lambda index, coordinator: [
        *(*TOGETHER, str(index), "2", coordinator, str(shared), "1000000")
    ]
    with two_processes(tmp_path, command) as (both, logs):
        deadline = time.monotonic() + BOUND
        while not (shared / "checkpoints" / "40").exists():
            assert time.monotonic() < deadline, logs[0].read_text()
            assert [process.poll() for process in both] == [None, None], logs[0].read_text()
            time.sleep(0.001)
        both[victim].send_signal(signal.SIGKILL)
        assert both[1 - victim].wait(BOUND) != 0
    steps = [int(path.name) for path in (shared / "checkpoints").iterdir() if path.name.isdigit()]
    until = max(steps) + 4
    with jax.numpy_dtype_promotion("standard"):
        ended = together.run(shared, None, until)
        expected = together.run(tmp_path / "alone", None, until)
    assert int(ended.step) == until
    chex.assert_trees_all_close(ended, expected, rtol=1e-7)


@pytest.fixture
def pictures(tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    for number in range(8):
        (folder / f"class{number}").mkdir(parents=True)
        for image in range(6):
            pixels = np.uint8(24 * number + rng.integers(0, 60, (8, 8)))
            Image.fromarray(pixels).save(folder / f"class{number}" / f"{image}.png")
    return folder


def shared_training(pictures, run, *more):
    """The command of each of two processes that train together."""
    small = [
        *("--ways", "2", "--shots", "2", "--train-shots", "3", "--inner-batch", "4"),
        *("--inner-steps", "2", "--size", "8", "--color", "grey", "--query-shots", "2"),
        *("--meta-batch", "3", "--steps-per-dispatch", "5", "--save-every", "5"),
    ]
    return lambda index, coordinator: [
        *("-m", "reptile_jax", "train", "images", "--data", str(pictures), *small),
        *("--out", str(run), "--distributed", "--coordinator", coordinator),
        *("--num-processes", "2", "--process-index", str(index)),
        *(word.format(index) for word in more),
    ]


def test_processes_that_were_told_different_things_do_not_train(pictures, tmp_path):
    command = shared_training(pictures, tmp_path / "run", "--inner-rate", "0.{}1")
    with two_processes(tmp_path, command) as (both, logs):
        assert [process.wait(BOUND) for process in both] == [1, 1]
    assert "were not all told the same" in logs[0].read_text()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_when_one_process_is_killed_the_other_says_so_and_ends(pictures, tmp_path):
    run = tmp_path / "run"
    with two_processes(tmp_path, shared_training(pictures, run)) as (both, logs):
        deadline = time.monotonic() + BOUND
        while not (run / "checkpoints" / "10").exists():
            assert time.monotonic() < deadline, logs[0].read_text()
            assert [process.poll() for process in both] == [None, None], logs[0].read_text()
            time.sleep(0.02)
        both[1].send_signal(signal.SIGKILL)
        assert both[0].wait(BOUND) != 0
    printed = logs[0].read_text()
    assert "the processes have lost each other" in printed or "another task died" in printed
    assert "classes" in printed  # the first speaks, the other is silent
    assert "classes" not in logs[1].read_text()
    assert run_folder.load_config(run).ways == 2


@pytest.mark.attack
def test_an_index_that_is_given_twice_ends_both_processes_in_a_line(pictures, tmp_path):
    command = shared_training(pictures, tmp_path / "run")
    with two_processes(tmp_path, lambda _, coordinator: command(0, coordinator)) as (both, logs):
        assert [process.wait(BOUND) for process in both] == [1, 1]
    said = [log.read_text().splitlines() for log in logs]
    assert sum("two processes have --process-index 0" in lines[-1] for lines in said) == 1
    assert sum("another process with --process-index 0" in lines[-1] for lines in said) == 1
    assert not any("Check failure" in line for line in (*said[0], *said[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distributed": True, "process_index": 2, "num_processes": 2}, "got 2 of 2"),
        ({"distributed": True, "process_index": -1}, "--process-index is 0 to"),
        ({"distributed": True, "num_processes": 0}, "--num-processes is at least 1, got 0"),
        ({"devices": 0}, "--devices is at least 1, got 0"),
        ({"devices": 9}, "--devices 9, but JAX has 8 here"),
        ({"process_index": 1}, "go with --distributed"),
        ({"distributed": True, "coordinator": "host"}, "HOST:PORT, got 'host'"),
        ({"distributed": True}, "the processes cannot be joined"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        with processes.joined(processes.Sharing(**options), None):
            pass


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.", "Out of memory"),
        ("UNAVAILABLE: Gloo all-reduce failed: Connection closed by peer", "lost each other"),
    ],
)
def test_only_what_comes_of_the_others_is_blamed_on_them(message, said):
    explained = processes._explained(jax.errors.JaxRuntimeError(message))
    assert said in explained
    assert ("lost each other" in explained) == (said == "lost each other")


@pytest.mark.parametrize("together", [False, True])
def test_a_process_that_a_signal_ends_alone_leaves_at_once(monkeypatch, capsys, together):
    """The others wait for it. Where all have agreed to stop, they end in an orderly way."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_mesh", lambda *_: None)
    monkeypatch.setattr(processes, "_own_folder", contextlib.nullcontext)
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(status))
    expected = signals.Interrupted if together else SystemExit
    with pytest.raises(expected) as info:
        with processes.joined(processes.Sharing(), None):
            raise signals.Interrupted(signal.SIGTERM, "stopped", together=together)
    if not together:
        assert info.value.code == 128 + signal.SIGTERM
        assert "process 0: stopped" in capsys.readouterr().err


def test_a_run_is_shared_by_the_devices_asked_for(monkeypatch, tmp_path):
    found = []
    train = lambda config, data, out, mesh, **_: found.append((out, mesh and mesh.size))
    monkeypatch.setattr(runner, "train", train)
    for words in ([], ["--devices", "1"], ["--devices", "3"]):
        assert cli.main(["train", "sinusoid", "--out", str(tmp_path / "run"), *words]) == 0
    assert found == [(tmp_path / "run", size) for size in (None, None, 3)]
