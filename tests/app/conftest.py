"""What the tests of the command line share: an empty folder, a data set, and a run on it."""

import fcntl
import shutil

import jax
import pytest

import reptile_jax as rj
from reptile_jax.app import cli, run_folder
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot
from tests.app import small_images, tiny_run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def promotion_of_a_person():
    """Optax's own arithmetic does not pass the tests' strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """The folder of a small data set of images."""
    return small_images.write(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def trained(pictures, shared_folder):
    """The folder of a small run on the pictures, not to be written to."""
    out = shared_folder / "bars"
    argv = small_images.train_command(pictures, "--out", str(out), "--meta-steps", "40")
    with (shared_folder / "bars.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the first process trains, the others wait for it
        if not out.exists():
            with jax.numpy_dtype_promotion("standard"):
                assert cli.main(argv) == 0
    return out


@pytest.fixture(scope="session")
def of_prototypes(tmp_path_factory):
    """A run on six ways that is scored on three, at its first state; not to be written to."""
    config = FewShotConfig(
        ways=6, eval_ways=3, inner_batch=12, classifier="prototypes", balanced_batches=True, size=8
    )
    out = tmp_path_factory.mktemp("prototypes") / "run"
    folder = run_folder.create(out, "run", config, {"classes": {"train": [], "test": []}})
    rj.checkpoint.save(folder / "checkpoints", few_shot.learned_by(config).first_state())
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, `run` in the current folder."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A tiny run that was left alone; not to be written to."""
    folder = tiny_run.new_run(tmp_path_factory.mktemp("whole") / "run")
    tiny_run.train(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A tiny run that has not begun."""
    return tiny_run.new_run(tmp_path / "tiny")
