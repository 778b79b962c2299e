"""Damaged, foreign and unwritable checkpoints: each is named, and the good ones stay."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    with pytest.raises(TypeError, match="save takes a learner's or a task's state, got dict"):
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
    cut(folder / "2" / "arrays" / "_METADATA")
    checkpoint.save(folder, state_of(3))
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", "damaged-2"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_loop(path):
    path.unlink()
    path.symlink_to(path)


def as_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


KINDS = [as_folder, as_pipe, as_loop, as_device]
DAMAGES = [cut, flip, Path.unlink, *KINDS]


@pytest.mark.attack
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_found_and_the_one_before_taken(folder, damage, tmp_path):
    files = [path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    if damage in KINDS:  # which do not depend on what is in the file
        files = [file for file in files if file.suffix == ".json" or file.name == "_METADATA"]
    for file in files:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damage(copy / file)
        state, said = restored(copy)
        chex.assert_trees_all_equal(state, state_of(1))
        if (
            file.name == "checksums.json" and not (copy / file).exists()
        ):  # as stopped before its end
            assert said == []
        else:
            assert len(said) == 1
            assert f"the checkpoint {copy / '2'} is damaged (" in said[0]
            assert f"({file.relative_to('2')} is " in said[0] or file.name == "checksums.json"
        shutil.rmtree(copy)


def test_one_that_is_not_finished_is_passed_over_and_makes_way(folder):
    shutil.copytree(folder / "2", folder / "8")
    (folder / "8" / "checksums.json").unlink()
    (folder / "8" / "arrays" / "_METADATA").unlink()
    state, said = restored(folder)
    assert int(state.step) == 2
    assert said == []
    checkpoint.save(folder, state_of(3))
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_where_none_is_finished_there_is_none(tmp_path):
    checkpoint.save(tmp_path, state_of(1))
    (tmp_path / "1" / "checksums.json").unlink()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        restored(tmp_path)


OPERATIONS = {
    Path: ("mkdir", "write_text", "replace", "unlink", "rename"),
    os: ("mkdir", "rename", "replace", "remove", "rmdir", "unlink"),
    shutil: ("rmtree",),
}


def copies_before_each_operation(folder, to, monkeypatch):
    """Copies the folder before every operation of the file system: what a kill would leave."""
    lock, seen = threading.RLock(), set()
    copying = threading.local()

    def copying_first(real):
        def call(*args, **kwargs):
            if not getattr(copying, "now", False):
                with lock:
                    copying.now = True
                    copy = to / str(len(seen))
                    try:
                        content = frozenset(contents(folder).items())
                        if content not in seen:
                            shutil.copytree(folder, copy)
                        seen.add(content)
                    except OSError:  # a thread has written meanwhile
                        shutil.rmtree(copy, ignore_errors=True)
                    copying.now = False
            return real(*args, **kwargs)

        return call

    for owner, names in OPERATIONS.items():
        for name in names:
            monkeypatch.setattr(owner, name, copying_first(getattr(owner, name)))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_save_killed_at_any_operation_leaves_the_newest_good_one(folder, tmp_path):
    """In it an old and an unfinished checkpoint are removed, and a damaged one is set aside."""
    shutil.copytree(folder / "1", folder / "0")
    (folder / "0" / "checksums.json").unlink()
    shutil.copytree(folder / "2", folder / "9")
    cut(folder / "9" / "arrays" / "_METADATA")
    with pytest.MonkeyPatch.context() as monkeypatch:
        copies_before_each_operation(folder, tmp_path / "copies", monkeypatch)
        checkpoint.save(folder, state_of(3))
    copies = list((tmp_path / "copies").iterdir())
    assert len(copies) > 10
    found = set()
    for copy in copies:
        state, _ = restored(copy)
        found.add(int(state.step))
        chex.assert_trees_all_equal(state, state_of(int(state.step)))
        checkpoint.save(copy, state_of(4))
        names = {path.name for path in copy.iterdir() if any(path.iterdir())}
        assert names in ({"2", "4", "damaged-9"}, {"3", "4", "damaged-9"}), copy
        chex.assert_trees_all_equal(restored(copy)[0], state_of(4))
    assert found == {2, 3}


def with_params(params, step=1):
    return MetaState(params, (), None, jnp.array(step, jnp.int32))


def numbered(tree):
    """Leaves that all differ."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, [jnp.full(2, n, jnp.float32) for n in range(len(leaves))])


class Both:
    """A node whose children have the same name."""

    def __init__(self, one, other):
        self.one, self.other = one, other


jax.tree_util.register_pytree_with_keys(
    Both,
    lambda both: (((jax.tree_util.GetAttrKey("x"), v) for v in (both.one, both.other)), None),
    lambda _, children: Both(*children),
)


@pytest.mark.parametrize(
    "tree",
    [
        {"siren": {"w": 0}, "siren/out": {"w": 0}, "siren/out/w": 0, "/": 0, "a/../b": 0},
        {"a": {"b": 0}, "a.b": 0, "a']['b": 0},
        {"layer1.0.weight": 0, "layer1": {"0": {"weight": 0}, "0.weight": 0}},
        {".": 0, "..": 0, "": 0, " ": 0, "\\": 0, "a\\b": 0, "*": 0, "**": 0, "é\n\0": 0},
        {"0": 0, "1": 0, "_METADATA": 0, "checksums.json": 0, "x" * 300: 0},
        {0: 0, 1: {2: 0}},
        [0, (0, {"a": [0]})],
        {"A": 0, "a": 0, "CON": 0},
        Both(0, 0),
    ],
    ids=lambda tree: str(tree)[:30],
)
def test_no_two_names_collide(tree, tmp_path):
    state = with_params(numbered(tree))
    checkpoint.save(tmp_path / "run", state)
    back, said = restored(tmp_path / "run", jax.eval_shape(lambda: state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    chex.assert_trees_all_equal(*(jax.tree.leaves(tree) for tree in (back, state)))
    assert said == []
    checkpoint.save(tmp_path / "run", state)  # known to be the same
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_names_as_haiku_and_torch_have_them_are_readable_where_they_differ(tmp_path):
    checkpoint.save(tmp_path, with_params({"net/~/conv": {"w": jnp.ones(3)}, "a.b": jnp.ones(2)}))
    like = with_params({"net/~/conv": {"w": jnp.ones(4)}, "a": {"b": jnp.ones(2)}})
    with pytest.raises(ValueError, match="of another model") as info:
        restored(tmp_path, like)
    for part in (
        "params['net/~/conv']['w'] is float32[3], expected float32[4]",
        "params['a.b'] is float32[2], expected nothing",
        "params['a']['b'] is missing, expected float32[2]",
    ):
        assert part in str(info.value)


DTYPES = ["bool", "int8", "int32", "uint16", "uint32", "float16", "bfloat16", "float32"]


@pytest.mark.parametrize("dtype", [*DTYPES, "int4", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (1, 1)], ids=str)
def test_arrays_of_any_type_and_size_come_back(dtype, shape, tmp_path):
    array = jnp.arange(np.prod(shape)).reshape(shape).astype(dtype)
    state = with_params({"w": array, "host": np.asarray(array), "last": jnp.ones(1)})
    checkpoint.save(tmp_path, state)
    for like in (state, jax.eval_shape(lambda: state)):
        back, _ = restored(tmp_path, like)
        assert back.params["w"].dtype == dtype
        chex.assert_trees_all_equal(back, state)


def test_values_that_are_not_finite_come_back_bit_for_bit(tmp_path):
    state = with_params({"w": jnp.array([jnp.nan, jnp.inf, -0.0])})
    checkpoint.save(tmp_path, state)
    back, _ = restored(tmp_path, state)
    assert np.asarray(back.params["w"]).tobytes() == np.asarray(state.params["w"]).tobytes()
    checkpoint.save(tmp_path, state)  # the same: nothing to do


EMPTY = {"a": {}, "b": [], "c": None, "d": optax.EmptyState(), "e": {"f": ()}}


def test_empty_subtrees_come_back(tmp_path):
    state = state_of(2)._replace(opt_state=EMPTY, inner_opt_state={})
    checkpoint.save(tmp_path, state)
    chex.assert_trees_all_equal(restored(tmp_path, state)[0], state)


def model_state(seed):
    """As of a model with batch norm and dropout: floats, integers, booleans, random keys."""
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 2)
    return {
        "batch_stats": {"norm/mean": jnp.full(3, seed, jnp.bfloat16), "empty": jnp.zeros((0, 2))},
        "dropout": {"key": jax.random.key(seed), "keys": keys, "none": keys[:0]},
        "count": jnp.array(seed),
        "is_trained": jnp.array([True, False]),
        "rate": 0.5,  # a number of Python's
    }


def words(tree):
    return jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf)
            if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
            else leaf
        ),
        tree,
    )


def test_a_models_state_comes_back(tmp_path):
    with_state = lambda seed: state_of(3)._replace(model_state=model_state(seed))
    checkpoint.save(tmp_path, with_state(7))
    for like in (with_state(0), jax.eval_shape(lambda: with_state(0))):
        state, _ = restored(tmp_path, like)
        chex.assert_trees_all_equal(words(state), words(with_state(7)))
        kinds = jax.tree.map(lambda leaf: str(jnp.asarray(leaf).dtype), with_state(7))
        assert jax.tree.map(lambda leaf: str(leaf.dtype), state) == kinds
    with pytest.raises(FileExistsError):
        checkpoint.save(tmp_path, with_state(8))
    with pytest.raises(ValueError, match=r"model_state\['count'\] is int32\[\], expected nothing"):
        restored(tmp_path, state_of(0))


def test_keys_of_another_kind_are_another_model(tmp_path):
    with_key = lambda kind: state_of(1)._replace(model_state=jax.random.key(0, impl=kind))
    checkpoint.save(tmp_path, with_key("rbg"))
    message = r"model_state is key<rbg>\[\], expected key<urbg>\[\]"
    with pytest.raises(ValueError, match=message):
        restored(tmp_path, with_key("unsafe_rbg"))


def test_numbered_folders_of_the_users_own_are_left_alone(tmp_path):
    for name in ("1", "2019", "2020", "007", "²"):
        (tmp_path / name / "arrays").mkdir(parents=True)
        (tmp_path / name / "notes.txt").write_text("mine")
        (tmp_path / name / "checksums.json").write_text('{"notes.txt": 1}')
    with ocp.CheckpointManager(tmp_path / "3000") as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    (tmp_path / "3000" / "5").rename(tmp_path / "5")
    (tmp_path / "6").write_text("mine")
    (tmp_path / "9").mkdir()
    before = contents(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        restored(tmp_path)
    for step in (2, 3, 4):
        checkpoint.save(tmp_path, state_of(step))
    state, said = restored(tmp_path)
    assert int(state.step) == 4
    assert said == []
    for step in (5, 6, 2019):
        with pytest.raises(FileExistsError, match=f"{step} is no checkpoint, so that of step "):
            checkpoint.save(tmp_path, state_of(step))
    checkpoint.save(tmp_path, state_of(9))  # in an empty folder
    after = contents(tmp_path)
    assert {path: after.get(path) for path in before} == before
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"1", "2019", "2020", "007", "²", "3000", "4", "5", "6", "9"}


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in ("~/run", Path("~/run")):
        checkpoint.save(folder, state_of(1))
        assert int(restored(folder)[0].step) == 1
    assert (tmp_path / "home" / "run" / "1").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("address", ["s3://bucket/run", "az://bucket/run", "hdfs://run", "gs://b"])
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_that_cannot_be_used_is_refused_at_the_start(
    address, kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    folder = kind(address)  # of which `Path` makes `s3:/bucket/run`
    reason = "gcsfs" if address.startswith("gs") else "on disks of this machine and under gs:// al"
    for refused in (
        lambda: checkpoint.save(folder, state_of(1)),
        lambda: checkpoint.check_path(folder),
        lambda: restored(folder),
    ):
        with pytest.raises(ValueError, match=f"kept under {address}: .*{reason}.*") as info:
            refused()
        assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_listener_damage_is_a_warning(folder):
    cut(folder / "2" / "arrays" / "_METADATA")
    with pytest.warns(UserWarning, match="2 is damaged .*; going back to the one before it"):
        checkpoint.restore(folder, state_of(0))


def test_nothing_but_damage_is_an_error(folder):
    for file in folder.rglob("checksums.json"):
        file.write_text("{")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        restored(folder)


@pytest.mark.parametrize("step", [2, 1])
def test_a_damaged_checkpoint_makes_way_and_is_kept(folder, step):
    cut(folder / "2" / "arrays" / "_METADATA")
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
        (state_of(0, size=4), r"params\['w'\] is float32\[3\], expected float32\[4\]"),
        (state_of(0, dtype=jnp.bfloat16), r"params\['w'\] is float32\[3\], expected bfloat16\[3\]"),
        (
            state_of(0)._replace(inner_opt_state=None),
            r"inner_opt_state\['count'\] is int32\[\], expected nothing",
        ),
        (
            state_of(0)._replace(params={"w": jnp.zeros(3), "c": jnp.ones(1)}),
            r"params\['b'\] is float32\[2,1\], expected nothing; params\['c'\] is missing",
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
    def save(self, place, **_):
        (place.parent / "arrays.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: no space\nin a call of a call of a call")

    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "save", save)
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
