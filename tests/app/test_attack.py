"""A run's files, damaged one at a time: it goes on bit for bit, or is refused in a line.

`pytest -m attack` ends with the figures. Each damage is of one file or folder of a tiny run. A run
that was stopped is resumed to its end: its state has to be that of the run that was left alone. Of
a run that is finished, the state is read and all pictures are drawn.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket

import jax
import numpy as np
import pytest

from reptile_jax.app import pictures, plots, run_folder, runner
from reptile_jax.app.config import SinusoidConfig
from reptile_jax.app.experiments import sinusoid
from tests.app import tiny_run
from tests.app.tiny_run import at, crash

ARRAYS = int(os.environ.get("REPTILE_DAMAGES", "20"))  # files and folders of arrays; there are 92
PLACES = 2  # of each file, for each damage of its bytes
CONFIG = dataclasses.replace(tiny_run.CONFIG, meta_steps=8, save_every=2)
FACTS = {"classes": {"train": ["a", "b"], "test": ["c"]}}

pytestmark = [pytest.mark.attack, pytest.mark.slow]


def new_run(folder):
    return run_folder.create(folder, "tiny", CONFIG, FACTS)


def resume(folder):
    """As the command: everything that a run has in its folder is read, and checked."""
    config = run_folder.load_config(folder)
    run_folder.check_data(folder, FACTS)
    with run_folder.resumable(folder):
        state = tiny_run.train(folder, config)
    assert config == CONFIG
    return state


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """The state of the run that is left alone."""
    return bits(resume(new_run(tmp_path_factory.mktemp("whole") / "run")))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that has checkpoints of the meta steps 4 and 6, and was stopped after that."""
    folder = new_run(tmp_path_factory.mktemp("stopped") / "run")
    with pytest.raises(RuntimeError):
        tiny_run.train(folder, CONFIG, at(8, crash))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]
    (folder / ".lock").touch()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was trained to its end and evaluated once more."""
    config = SinusoidConfig(meta_steps=4, steps_per_dispatch=2, eval_tasks=4, eval_steps=4)
    folder = runner.train(config, out=tmp_path_factory.mktemp("finished") / "run")
    runner.evaluate(folder, eval_tasks=3)
    return folder


def parts(folder, rng):
    """All files and folders of the run but those of arrays, and some of these."""
    paths = sorted(folder.rglob("*"))
    arrays = [path for path in paths if "arrays" in path.relative_to(folder).parts[:-1]]
    chosen = rng.sample(arrays, min(ARRAYS, len(arrays)))
    return [path for path in paths if path not in arrays or path in chosen]


def bits(state):
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(state)]


# ----------------------------------------------------------------- damages: of bytes, and of kinds


def flipped(content, rng):
    content = bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def zeroed(content, rng):
    start = rng.randrange(len(content))
    return content[:start] + bytes(len(content) - start)


def longer(content, rng):
    return content + rng.randbytes(40)


def of_bytes(change):
    """Damages of the bytes of a file, at several places; an empty one has none."""

    def damages(path, rng):
        for _ in range(PLACES if path.is_file() and path.stat().st_size else 0):
            yield lambda path: path.write_bytes(change(path.read_bytes(), rng))

    return damages


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def deleted(path, rng):
    yield remove


def of_another_kind(path, rng):
    """In its place a folder or an empty file, a pipe, a socket, a device, a link to itself."""

    def a_socket(path):
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's path has a length that it may have
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(path.name)
        os.chdir(before)

    other = type(path).touch if path.is_dir() else type(path).mkdir
    loop, zeros = (lambda p: p.symlink_to(p)), (lambda p: p.symlink_to("/dev/zero"))
    for make in rng.sample([other, os.mkfifo, a_socket, loop, zeros], PLACES):
        yield lambda path, make=make: (remove(path), make(path))


DAMAGES = {
    "a bit flipped": of_bytes(flipped),
    "cut short": of_bytes(cut),
    "zeros from somewhere on": of_bytes(zeroed),
    "bytes added": of_bytes(longer),
    "deleted": deleted,
    "of another kind": of_another_kind,
}


@contextlib.contextmanager
def within(seconds):
    """Fails if what is inside waits for something that never comes."""

    def too_long(*_):
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attacked(folder, paths, name, copy, use):
    """How often `use` of a copy with one damage did well, and how often it refused in a line."""
    rng, tried = random.Random(name), {"resumed": 0, "refused": 0}
    for path in paths(rng):
        for damage in DAMAGES[name](path, rng):
            shutil.copytree(folder, copy)
            damage(copy / path.relative_to(folder))
            try:
                with within(60):
                    is_well = use(path)
                tried["resumed" if is_well else "refused"] += 1
            except (ValueError, OSError) as error:
                said = f"{error} {getattr(error, 'filename', '')}"
                assert str(copy) in said, path
                assert "\n" not in said
                tried["refused"] += 1
            shutil.rmtree(copy)
    return tried


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damage_leads_to_a_wrong_state(name, stopped, end, tmp_path, record_property, capsys):
    copy = tmp_path / "run"

    def use(path):
        assert bits(resume(copy)) == end, path
        return True

    tried = attacked(stopped, lambda rng: parts(stopped, rng), name, copy, use)
    capsys.readouterr()
    record_property("attack", {"run": "stopped", "damage": name, **tried})
    assert tried["resumed"]


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damage_to_a_finished_run_is_hidden(
    name, finished, tmp_path, record_property, capsys, monkeypatch
):
    """Of what `plot` reads and writes. What a number in a file says is believed."""
    monkeypatch.setattr(plots, "_save", blank)
    copy, config = tmp_path / "run", run_folder.load_config(finished)
    first_state = sinusoid.build(config).first_state
    state = bits(run_folder.restore(finished, first_state))
    names = ("results.json", "evaluation.json", "adaptation.npz", "metrics.jsonl", "scores.png")

    def use(path):
        drawn = {picture.name for picture in pictures.draw(copy)}
        assert bits(run_folder.restore(copy, first_state)) == state
        is_whole, said = "adaptation.png" in drawn, capsys.readouterr().err
        damaged = copy / path.name
        assert is_whole or str(damaged) in said or not damaged.exists()
        return is_whole

    tried = attacked(finished, lambda rng: [finished / name for name in names], name, copy, use)
    record_property("attack", {"run": "finished", "damage": name, **tried})
    assert tried["resumed"] + tried["refused"] >= len(names)


def blank(figure, path):
    """In the place of a picture, whose drawing takes long."""
    plots.plt.close(figure)
    plots.write_whole(path, b"\x89PNG")
