"""Signals: who handles them inside and afterwards. Kills of real processes are in `test_killed`."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from reptile_jax.app import runner, signals
from reptile_jax.app.config import SinusoidConfig
from reptile_jax.datasets import images
from tests.app.tiny_run import steps_of

pytestmark = pytest.mark.attack


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


def test_a_hang_up_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled(signals.interrupt):
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(signals.Interrupted), signals.handled(signals.interrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_does_not_wait_for_the_images_that_are_left(tmp_path, monkeypatch):
    read = []

    def slow(*_):
        time.sleep(0.02)
        read.append(1)
        return np.zeros((8, 8, 1), np.uint8)

    monkeypatch.setattr(images, "_decoded", slow)
    (tmp_path / "a.png").write_bytes(b"of no kind")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    with signals.handled(signals.interrupt):
        timer.start()
        with pytest.raises(signals.Interrupted):
            images.read_images([tmp_path / "a.png"] * 2000, size=8, color="grey")
        timer.join()
    assert 0 < len(read) < 1000


# ------------------------------------------------------------------------------ real processes


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """The folder of a run on the sine waves."""
    folder = tmp_path_factory.mktemp("runs") / "waves"
    return runner.train(SinusoidConfig(meta_steps=4, eval_tasks=3), out=folder)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
def test_a_signal_in_a_compilation_ends_the_command_and_not_the_compiler(delay, waves):
    """XLA compiles in a thread of its own, while the main thread can be interrupted."""
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0", "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-m", "reptile_jax", "evaluate", str(waves)]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env={**env, "XLA_FLAGS": ""}, text=True, **output) as process:
        assert any("Compiling jit(_scores)" in line for line in process.stderr)
        time.sleep(delay)
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.endswith("reptile-jax: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_run_whose_terminal_is_closed_is_saved(is_ignored, tmp_path):
    """Unless the hang-up is ignored, as under nohup: then it goes on to its end."""
    out = tmp_path / "run"
    steps = 60 if is_ignored else 10**6
    code = f"""
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.{"SIG_IGN" if is_ignored else "SIG_DFL"})
os.execv(sys.executable, [sys.executable, "-m", "reptile_jax", "train", "sinusoid",
    "--meta-steps", "{steps}", "--steps-per-dispatch", "10", "--eval-tasks", "2",
    "--save-every", "{10**6}", "--out", {str(out)!r}])
"""
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([sys.executable, "-c", code], **streams) as process:
        os.close(theirs)
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None
            with contextlib.suppress(OSError):
                os.read(ours, 2**16)
        os.close(ours)
        # Of one that has gone on, the status says that not all could be printed.
        assert process.wait(120) == (1 if is_ignored else 128 + signal.SIGHUP)
    assert (out / "results.json").exists() == is_ignored
    saved = [int(path.name) for path in (out / "checkpoints").iterdir()]
    assert saved == [steps_of(out / "metrics.jsonl")[-1]]
