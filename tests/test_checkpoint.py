"""Damaged, foreign and unwritable checkpoints: each is named, and the good ones stay."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from reptile_jax import MetaState, checkpoint


def state_of(step, size=3, dtype=jnp.float32):
    params = {"w": jnp.arange(size, dtype=dtype) + jnp.asarray(step, dtype), "b": jnp.ones((2, 1))}
    return MetaState(params, (), {"count": jnp.array(step)}, jnp.array(step, jnp.int32))


@pytest.fixture
def folder(tmp_path):
    """With good checkpoints of the steps 1 and 2."""
    checkpoint.save(tmp_path / "checkpoints", state_of(1))
    checkpoint.save(tmp_path / "checkpoints", state_of(2))
    return tmp_path / "checkpoints"


def restored(folder, like=None):
    """What is restored, and what is said about it."""
    said = []
    return checkpoint.restore(folder, like or state_of(0), said.append), said


def test_the_newest_comes_back_and_the_two_newest_stay(folder):
    checkpoint.save(folder, state_of(3))
    state, said = restored(folder, jax.eval_shape(lambda: state_of(0)))
    chex.assert_trees_all_equal(state, state_of(3))
    assert said == []
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_a_folder_may_be_a_string_and_what_is_no_state_is_named(tmp_path):
    checkpoint.save(str(tmp_path), state_of(3))
    like = state_of(0)
    chex.assert_trees_all_equal(checkpoint.restore(str(tmp_path), like), state_of(3))
    with pytest.raises(TypeError, match="save takes a learner's state, got dict"):
        checkpoint.save(tmp_path, {"w": jnp.zeros(3)})


def test_a_save_prints_nothing(tmp_path):
    code = """
import sys, jax.numpy as jnp
from reptile_jax import MetaState, checkpoint
state = lambda step: MetaState({"w": jnp.ones(3)}, (), None, jnp.int32(step))
for step in range(3):
    checkpoint.save(sys.argv[1], state(step))
checkpoint.restore(sys.argv[1], state(0))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("name", ["project [v2]", "a*b", "what?"])
def test_a_folder_may_have_an_unusual_name(name, tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / name / "run", state_of(step))
    state, said = restored(tmp_path / name / "run")
    chex.assert_trees_all_equal(state, state_of(3))
    assert said == []


@pytest.mark.parametrize("name", ["a\\b", "a**b"])
def test_a_name_that_checkpoints_cannot_bear_is_named_before_anything_is_written(name, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint can be kept under .*Give another folder"):
        checkpoint.save(tmp_path / name, state_of(1))
    with pytest.raises(ValueError, match=r"no checkpoint can be kept under .*Give another folder"):
        checkpoint.check_path(tmp_path / name / "run")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_in_the_format_of_earlier_versions_is_read(tmp_path):
    with ocp.CheckpointManager(
        tmp_path, item_handlers=ocp.StandardCheckpointHandler(use_ocdbt=True)
    ) as manager:
        manager.save(2, args=ocp.args.StandardSave(state_of(2)))
    assert list(tmp_path.glob("2/default/ocdbt.process_0"))
    state, said = restored(tmp_path)
    chex.assert_trees_all_equal(state, state_of(2))
    assert said == []


def test_random_keys_come_back(tmp_path):
    with_key = lambda seed: state_of(1)._replace(opt_state=jax.random.key(seed, impl="rbg"))
    checkpoint.save(tmp_path, with_key(3))
    checkpoint.save(tmp_path, with_key(3))
    for like in (with_key(0), jax.eval_shape(lambda: with_key(0))):
        state, _ = restored(tmp_path, like)
        assert jax.random.key_impl(state.opt_state) == "rbg"
        chex.assert_trees_all_equal(
            *(jax.random.key_data(found.opt_state) for found in (state, with_key(3)))
        )
    with pytest.raises(FileExistsError):
        checkpoint.save(tmp_path, with_key(4))


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(folder):
    cut(folder / "2" / "default" / "_METADATA")
    checkpoint.save(folder, state_of(3))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", "damaged-2"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_found_and_the_one_before_taken(folder, damage, tmp_path):
    files = [path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damage(copy / file)
        state, said = restored(copy)
        if damage is Path.unlink and file.name == "checksums.json":  # stopped before it was written
            assert int(state.step) == 2
        else:
            chex.assert_trees_all_equal(state, state_of(1))
            assert len(said) == 1
            assert f"the checkpoint {copy / '2'} is damaged (" in said[0]
            assert f"({file.relative_to('2')} is " in said[0] or file.name == "checksums.json"
        shutil.rmtree(copy)


def test_an_empty_or_half_empty_checkpoint_is_passed_over(folder):
    (folder / "7").mkdir()
    shutil.copytree(folder / "2", folder / "8")
    (folder / "8" / "checksums.json").unlink()
    (folder / "8" / "default" / "_METADATA").unlink()
    state, said = restored(folder)
    assert int(state.step) == 2
    assert all(
        f"checkpoints/{step} is damaged" in line for step, line in zip("87", said, strict=True)
    )


def test_without_a_listener_damage_is_a_warning(folder):
    (folder / "9").mkdir()
    with pytest.warns(UserWarning, match="9 is damaged .*; going back to the one before it"):
        checkpoint.restore(folder, state_of(0))


def test_nothing_but_damage_is_an_error(folder):
    for file in folder.rglob("checksums.json"):
        file.write_text("{")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        restored(folder)


@pytest.mark.parametrize("step", [2, 1])
def test_a_damaged_checkpoint_makes_way_and_is_kept(folder, step):
    cut(folder / "2" / "default" / "_METADATA")
    if step == 1:
        shutil.rmtree(folder / "1")
    damaged = {path.name: path.read_bytes() for path in (folder / "2").rglob("*") if path.is_file()}
    checkpoint.save(folder, state_of(step))
    chex.assert_trees_all_equal(restored(folder)[0], state_of(step))
    aside = folder / "damaged-2"
    assert damaged == {path.name: path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    checkpoint.save(folder, state_of(3))
    checkpoint.save(folder, state_of(4))
    assert aside.is_dir()


def test_a_good_checkpoint_is_not_overwritten(folder):
    checkpoint.save(folder, state_of(2))  # the same: nothing to do
    other = state_of(2)._replace(params=state_of(1).params)
    with pytest.raises(FileExistsError, match="has a checkpoint of step 2"):
        checkpoint.save(folder, other)
    with pytest.raises(FileExistsError, match="of step 1, so that of step 0 cannot be saved"):
        checkpoint.save(folder, state_of(0))
    chex.assert_trees_all_equal(restored(folder)[0], state_of(2))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (state_of(0, size=4), r"params\.w is float32\[3\], expected float32\[4\]"),
        (state_of(0, dtype=jnp.bfloat16), r"params\.w is float32\[3\], expected bfloat16\[3\]"),
        (
            state_of(0)._replace(inner_opt_state=None),
            r"inner_opt_state is missing, expected empty; "
            r"inner_opt_state\.count is int32\[\], expected nothing",
        ),
        (
            state_of(0)._replace(params={"w": jnp.zeros(3), "c": jnp.ones(1)}),
            r"params\.b is float32\[2,1\], expected nothing; params\.c is missing, expected",
        ),
    ],
    ids=["shape", "dtype", "policy", "names"],
)
def test_a_checkpoint_of_another_model_says_what_differs(folder, like, message):
    with pytest.raises(ValueError, match="of another model or another version: " + message) as info:
        checkpoint.restore(folder, like)
    assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.save(folder, like)


@contextlib.contextmanager
def files_of_at_most(size):
    """Writing more fails in the system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    folder = tmp_path / "checkpoints"
    state = lambda step: state_of(step, size=100_000)
    checkpoint.save(folder, state(1))
    with files_of_at_most(100_000), pytest.raises(OSError, match="step 2 cannot be writ") as info:
        checkpoint.save(folder, state(2))
    assert str(info.value).endswith(f"{folder}: File too large")
    assert int(restored(folder, state(0))[0].step) == 1
    checkpoint.save(folder, state(2))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_disk_that_fills_during_the_save_leaves_the_checkpoints_before(folder, monkeypatch):
    def save(self, step, **_):
        (folder / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: no space\nin a call of a call of a call")

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", save)
        with pytest.raises(OSError, match=r"step 3 cannot be written .* no space$"):
            checkpoint.save(folder, state_of(3))
    assert int(restored(folder)[0].step) == 2
    checkpoint.save(folder, state_of(3))
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


@contextlib.contextmanager
def as_nobody():
    """Without the superuser's rights, which no permission binds."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_named():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        checkpoint.save(folder, state_of(1))
        Path(place).chmod(0o755)
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(OSError, match=r"step 2 cannot be .*ermission"):
            checkpoint.save(folder, state_of(2))
        with as_nobody():
            assert int(restored(folder)[0].step) == 1
        folder.chmod(0o755)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(OSError, match=r"cannot be written to .*checkpoints"):
        checkpoint.save(tmp_path / "checkpoints", state_of(1))
    assert (tmp_path / "checkpoints").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint folder"):
        checkpoint.restore(tmp_path / "checkpoints", state_of(1))
