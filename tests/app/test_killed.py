"""Real processes: killed at any moment they lose nothing, and a second signal ends them at once."""

import dataclasses
import multiprocessing
import os
import random
import signal
import time

import chex
import pytest

from tests.app import tiny_run

KILLS = int(os.environ.get("REPTILE_KILLS", "5"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a single-threaded one, where JAX is imported and has not started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["jax", "optax", "orbax.checkpoint", "reptile_jax.app.run_folder"]
    )
    return context


def wait_for(condition, process, seconds=120):
    """Whether the condition came true while the process lived."""
    end = time.monotonic() + seconds
    while not condition():
        if not process.is_alive():
            return condition()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)
    return True


def unfinished(run):
    """Whether there is a checkpoint that is being written, or was when its process was killed."""
    steps = (run / "checkpoints").glob("[0-9]*")
    return any(not (step / "checksums.json").exists() for step in steps)


def stopped_in_a_save(process, run):
    """Whether the process stands still in the middle of a save; else it goes on."""
    if not unfinished(run):
        return False
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.01)
    if unfinished(run):
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


def test_a_run_killed_again_and_again_is_the_one_left_alone(processes, tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, meta_steps=10 * KILLS + 10, save_every=1)
    alone = tiny_run.new_run(tmp_path / "alone", config)
    process = processes.Process(target=tiny_run.train_in_a_process, args=(alone, config, None))
    process.start()
    process.join()
    assert process.exitcode == 0

    killed = tiny_run.new_run(tmp_path / "killed", config)
    beats = killed / "beats"
    beats.touch()
    rng, kills, in_a_save = random.Random(0), 0, 0
    while True:
        job = (killed, config, tmp_path / "programs")
        process = processes.Process(target=tiny_run.train_in_a_process, args=job)
        process.start()
        if kills == KILLS:
            break
        if kills % 2 == 0:
            wait_for(lambda process=process: stopped_in_a_save(process, killed), process)
        elif rng.random() < 0.3:  # before there is anything, or while it restores or compiles
            time.sleep(rng.uniform(0, 1))
        else:
            wanted = beats.stat().st_size + rng.randint(1, 3)
            wait_for(lambda wanted=wanted: beats.stat().st_size >= wanted, process)
            time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        in_a_save += unfinished(killed)
    process.join()
    assert process.exitcode == 0
    print(f"killed {kills} times, {in_a_save} of them in a save")
    assert in_a_save

    states = [tiny_run.restored(folder) for folder in (alone, killed)]
    chex.assert_trees_all_equal(*states)
    assert int(states[0].step) == config.meta_steps
    metrics = (alone / "metrics.jsonl").read_bytes()
    assert len(metrics.splitlines()) == config.meta_steps / config.steps_per_dispatch
    assert (killed / "metrics.jsonl").read_bytes() == metrics
    assert not unfinished(killed)


def test_a_second_signal_ends_even_a_process_that_cannot_listen(processes, tmp_path):
    process = processes.Process(target=tiny_run.be_busy, args=(tmp_path,))
    process.start()
    wait_for((tmp_path / "busy").exists, process)
    os.kill(process.pid, signal.SIGINT)
    assert wait_for((tmp_path / "asked").exists, process)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM


@pytest.mark.attack
def test_a_second_hang_up_is_of_the_same_closed_terminal(processes, tmp_path):
    process = processes.Process(target=tiny_run.be_busy, args=(tmp_path,))
    process.start()
    wait_for((tmp_path / "busy").exists, process)
    os.kill(process.pid, signal.SIGHUP)
    assert wait_for((tmp_path / "asked").exists, process)
    os.kill(process.pid, signal.SIGHUP)
    process.join(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
