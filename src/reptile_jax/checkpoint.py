"""Checkpoints of a `MetaState`, by Orbax, with checksums that tell a damaged one from a good one.

    start = learner.init(params)
    with contextlib.suppress(FileNotFoundError):  # the first start has none
        start = checkpoint.restore(folder, like=start)
    for state, infos in rj.train(learner, start, distribution, key, until=100_000, meta_batch=5):
        if int(state.step) % 1000 == 0:
            checkpoint.save(folder, state)

A script that is stopped and started again ends with the same state as one that never stopped, bit
for bit.
"""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from reptile_jax._checksums import Damaged, first_line, is_whole, write_checksums
from reptile_jax._types import MetaState


def save(folder: Path, state: MetaState) -> None:
    """Saves the state under its step, and keeps the two newest. Of many processes the first saves.

    Damaged checkpoints are renamed `damaged-STEP`: they no longer count.

    Raises:
      TypeError: for what is not a `MetaState`.
      FileExistsError: if there is a good checkpoint of a later step, or a different one of this.
      ValueError: if there is one of another model, of this step or a later one; as `check_path`.
      OSError: if it cannot be written; the others stay.
    """
    folder = Path(folder)
    if not isinstance(state, MetaState):
        raise TypeError(f"save takes a learner's state, got {type(state).__name__}.")
    check_path(folder)
    if jax.process_index():
        return
    if jax.process_count() > 1:  # Orbax takes arrays of all processes, or of none
        state = jax.device_get(state)
    step, state = int(state.step), _keys_as_words(state)
    for earlier in [other for other in _steps(folder) if other < step]:
        with contextlib.suppress(ValueError):  # of another model, but whole
            try:
                is_whole(folder / str(earlier)) or _read(folder, earlier, _shapes(state))
            except Damaged:
                _set_aside(folder, earlier)
    for other in [other for other in _steps(folder) if other >= step]:
        try:
            there = _read(folder, other, _shapes(state))
        except Damaged:
            _set_aside(folder, other)
            continue
        if other == step and _equal(there, state):
            return
        raise FileExistsError(
            f"{folder} has a checkpoint of step {other}, so that of step {step} cannot be saved "
            "there: go on from it with restore, or give another folder."
        )
    try:
        _check_room(folder, state)
        manager = _manager(folder, max_to_keep=2, cleanup_tmp_directories=True)
        with _no_word_of_merging(), manager:
            manager.save(step, args=ocp.args.StandardSave(state), force=True)
        write_checksums(folder / str(step))
    except Exception as error:  # Orbax and its storage raise many kinds
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder}: {first_line(error)}"
        ) from error


def check_path(folder: Path) -> None:
    """Raises a ValueError for a folder that Orbax cannot keep arrays in, because of its name."""
    path = str(Path(folder).absolute())
    if bad := [part for part in ("\\", "**") if part in path and part != os.sep]:
        raise ValueError(
            f"no checkpoint can be kept under {path}: Orbax takes {' and '.join(bad)} in a path "
            "for something else. Give another folder."
        )


def restore(
    folder: Path, like: MetaState, on_damage: Callable[[str], Any] = warnings.warn
) -> MetaState:
    """Restores the newest state that is not damaged.

    Args:
      folder: the run's checkpoint folder.
      like: a state of the same structure, shapes and dtypes; `jax.eval_shape(learner.init, params)`
        makes one that takes no memory. With that the state comes back on one device: `train` puts
        it on all of its learner's; for `learner.step`, call `rj.replicate(state, learner.mesh)`.
      on_damage: told of each damaged checkpoint that is passed over; it stays where it is.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if the checkpoint is of another model, naming what differs, or all are damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}.")
    steps = _steps(folder)
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {folder}.")
    for step in reversed(steps):
        try:
            state = _read(folder, step, _shapes(_keys_as_words(like)))
            return _words_as_keys(state, like)
        except Damaged as damage:
            on_damage(f"{damage}; going back to the one before it.")
    raise ValueError(f"every checkpoint in {folder} is damaged.")


def _read(folder: Path, step: int, like: MetaState) -> MetaState:
    place = folder / str(step)
    whole = is_whole(place)
    try:
        with _manager(folder, create=False) as manager:
            found = manager.item_metadata(step)
            differences = _differences(_described(found.tree), _described(like))
            if not differences:
                return manager.restore(step, args=ocp.args.StandardRestore(like))
    except Exception as error:
        if isinstance(error, PermissionError | MemoryError):
            raise
        if whole:
            raise ValueError(
                f"the checkpoint {place} is as it was written, but this version cannot read it: "
                f"{first_line(error)}"
            ) from error
        raise Damaged(f"the checkpoint {place} is damaged ({first_line(error)})") from error
    more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise ValueError(
        f"the checkpoint {place} is of another model or another version: "
        f"{'; '.join(differences[:3])}{more}."
    )


def _described(tree: Any) -> dict[str, str]:
    """A description of each leaf by its path, in the form in which Orbax names them."""
    plain = ocp.utils.serialize_tree(tree, keep_empty_nodes=True)
    leaves = ocp.utils.to_flat_dict(plain, keep_empty_nodes=True)
    describe = lambda leaf: (
        f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" if hasattr(leaf, "shape") else "empty"
    )
    return {".".join(map(str, path)): describe(leaf) for path, leaf in leaves.items()}


def _differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{path} is {found.get(path, 'missing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]


def _shapes(state: MetaState) -> MetaState:
    """Shapes, dtypes and where to put the leaves: on this machine's devices, not the writer's."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def shape(leaf):
        sharding = getattr(leaf, "sharding", None)
        of_this_process = sharding is not None and sharding.is_fully_addressable
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding if of_this_process else here
        )

    return jax.tree.map(shape, state)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_as_words(tree: Any) -> Any:
    """The tree with the words of random keys in their place: Orbax stores numbers alone."""
    shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    words = lambda leaf: (
        jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array)
        else jax.eval_shape(jax.random.key_data, shape(leaf))
    )
    return jax.tree.map(lambda leaf: words(leaf) if _is_key(leaf) else leaf, tree)


def _words_as_keys(tree: Any, like: Any) -> Any:
    """The reverse, with the keys' kinds as in `like`."""

    kind = lambda leaf: jax.random.key_impl(jnp.empty((), leaf.dtype))  # of shapes, too
    key = lambda words, leaf: jax.random.wrap_key_data(words, impl=kind(leaf))
    return jax.tree.map(lambda x, leaf: key(x, leaf) if _is_key(leaf) else x, tree, like)


def _equal(one: MetaState, other: MetaState) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def _check_room(folder: Path, state: MetaState) -> None:
    """Fails where there is no room to write: plainly, and before Orbax does in many threads."""
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + (1 << 16))  # and Orbax's own files


def _set_aside(folder: Path, step: int) -> None:
    number, name = 1, f"damaged-{step}"
    while (folder / name).exists():
        number += 1
        name = f"damaged-{step}-{number}"
    (folder / str(step)).rename(folder / name)


def _steps(folder: Path) -> list[int]:
    """The steps of which there is a checkpoint; what Orbax has not finished bears another name."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder.absolute(),
        # Each array in files of its own: Orbax merges those of its other format by a glob, which
        # finds nothing where the path has brackets. Both formats are read.
        item_handlers=ocp.StandardCheckpointHandler(use_ocdbt=False),
        options=ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False, **{**options, **_by_itself()}
        ),
    )


@contextlib.contextmanager
def _no_word_of_merging() -> Iterator[None]:
    """Drops Orbax's warning, at every save, that it finds nothing to merge; there never is."""
    other = lambda record: "Skipping merge of OCDBT" not in record.getMessage()
    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _by_itself() -> dict[str, Any]:
    """Options by which one of many processes saves or restores without waiting for the others."""
    if jax.process_count() == 1:
        return {}
    return {
        "create": False,  # the folder is there
        "multiprocessing_options": ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process-{jax.process_index()}",
        ),
    }
