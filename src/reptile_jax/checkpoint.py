"""Checkpoints of a state, by Orbax, with checksums that tell a damaged one from a good one.

    start = learner.init(params)
    with contextlib.suppress(FileNotFoundError):  # the first start has none
        start = checkpoint.restore(folder, like=start)
    for state, infos in rj.train(learner, start, distribution, key, until=100_000, meta_batch=5):
        if int(state.step) % 1000 == 0:
            checkpoint.save(folder, state)

A script that is stopped and started again ends with the same state as one that never stopped, bit
for bit.

`FOLDER/STEP/` has `reptile_jax.json`, the leaves of the state by their paths; `arrays/`, in which
Orbax keeps them by their number in that list, so that no two names can collide; and
`checksums.json`, written last. A task's state that another process than the first has saved is in
`arrays.npz` in its place. Other folders and files in FOLDER are left alone.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from reptile_jax._checkpoint_folder import (
    LEAVES,
    absolute,
    check_path,
    check_room,
    finished,
    first_line,
    is_free,
    located,
    remove,
    set_aside,
    steps,
)
from reptile_jax._checkpoint_leaves import (
    as_leaf,
    described,
    differences,
    divided_as,
    equal,
    named_leaves,
    numbered,
    of_all_processes,
    on_this_host,
    size_of,
    target,
)
from reptile_jax._checksums import Damaged, check_whole, write_checksums
from reptile_jax._state_checks import check_usable
from reptile_jax._types import MetaState, TaskState

_ARRAYS, _OWN_ARRAYS = "arrays", "arrays.npz"

State = TypeVar("State", MetaState, TaskState)


def save(folder: Path | str, state: MetaState | TaskState) -> None:
    """Saves the state under its step, and keeps the two newest.

    Of many processes the first saves a `MetaState`. Each has a `TaskState` of its own, and saves it
    in a folder of its own.

    Damaged checkpoints are renamed `damaged-STEP`: they no longer count. What is divided over the
    devices of one process is saved from each; where a model is divided over processes, all of them
    call this, and its arrays come together in every host's memory.

    Args:
      folder: where the checkpoints of a run are: `~` is the home folder, and `gs://BUCKET/FOLDER`
        works where gcsfs (or TensorFlow) and google-cloud-storage are installed.
      state: a learner's or a task's. Its parts may be any pytrees of arrays, also of random keys.

    Raises:
      TypeError: for what is neither a `MetaState` nor a `TaskState`.
      FileExistsError: if there is a good checkpoint of a later step, or a different one of this, or
        if something else has the name of this.
      ValueError: if there is one of another model, of this step or a later one; for a state that
        was donated; as `check_path`.
      OSError: if it cannot be written; the others stay.
    """
    if not isinstance(state, MetaState | TaskState):
        raise TypeError(f"save takes a learner's or a task's state, got {type(state).__name__}.")
    check_usable(state)
    check_path(folder)
    state = jax.tree.map(of_all_processes, state)
    if jax.process_index() and isinstance(state, MetaState):
        return
    place = located(folder)
    step, leaves = int(state.step), named_leaves(state)
    if _is_saved(place, step, leaves):
        return
    try:
        check_room(place, size_of(leaves))
        for unfinished in set(steps(place)) - set(finished(place)):
            remove(place / str(unfinished))
        _write(place / str(step), leaves)
        for old in finished(place)[:-2]:
            remove(place / str(old))
    except Exception as error:  # Orbax and its storage raise many kinds
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {place}: {first_line(error)}"
        ) from error


def restore(
    folder: Path | str, like: State, on_damage: Callable[[str], Any] = warnings.warn
) -> State:
    """Restores the newest state that is not damaged. One whose save was cut short does not count.

    Args:
      folder: as in `save`.
      like: a state of the same structure, shapes and dtypes; `jax.eval_shape(learner.init, params)`
        makes one that takes no memory. With that the state comes back on one device: `train` puts
        it on all of its learner's; for `learner.step`, call `rj.replicate(state, learner.mesh)`.
        Arrays that are divided over devices come back divided in the same way, wherever they were
        when they were saved.
      on_damage: told of each damaged checkpoint that is passed over; it stays where it is.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if the checkpoint is of another model, naming what differs, or all are damaged;
        as `check_path`.
    """
    check_path(folder)
    place = located(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {place}.")
    there, leaves = finished(place), named_leaves(jax.tree.map(on_this_host, like))
    if not there:
        raise FileNotFoundError(f"there is no checkpoint in {place}.")
    for step in reversed(there):
        try:
            check_whole(place / str(step))
            read = _read(place / str(step), leaves).values()
            state = jax.tree.unflatten(jax.tree.structure(like), read)
            return jax.tree.map(divided_as, state, like)
        except Damaged as damage:
            on_damage(f"{damage}; going back to the one before it.")
    raise ValueError(f"every checkpoint in {place} is damaged.")


def _is_saved(folder: Any, step: int, leaves: Mapping[str, Any]) -> bool:
    """Whether the state is there; raises as `save` does. What is damaged is set aside."""
    for other in finished(folder):
        try:
            check_whole(folder / str(other))
            if other < step:
                continue
            there = _read(folder / str(other), leaves)
        except Damaged:
            set_aside(folder, other)
            continue
        if other == step and equal(there, leaves):
            return True
        raise FileExistsError(
            f"{folder} has a checkpoint of step {other}, so that of step {step} cannot be saved "
            "there: go on from it with restore, or give another folder."
        )
    place = folder / str(step)
    if not is_free(place):
        raise FileExistsError(
            f"{place} is no checkpoint, so that of step {step} cannot be saved there: give another "
            "folder."
        )
    return False


def _write(place: Any, leaves: Mapping[str, Any]) -> None:
    place.mkdir(exist_ok=True)
    words = {path: described(leaf) for path, leaf in leaves.items()}
    (place / LEAVES).write_text(json.dumps(words, indent=2))
    if jax.process_index():  # Orbax writes a process's own arrays in the first process alone
        with (place / _OWN_ARRAYS).open("wb") as file:
            np.savez(file, **numbered(leaves))
    else:
        with _no_word_of_merging(), _orbax() as orbax:
            orbax.save(absolute(place / _ARRAYS), args=ocp.args.StandardSave(numbered(leaves)))
    write_checksums(place)


def _read(place: Any, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The leaves of a checkpoint that is whole, by their paths."""
    try:
        found = json.loads((place / LEAVES).read_text())
        odd = differences(found, {path: described(leaf) for path, leaf in like.items()})
        if not odd:
            ordered = {path: like[path] for path in found}
            arrays = _read_arrays(place, jax.tree.map(target, numbered(ordered)))
            read = {
                path: as_leaf(arrays.get(str(number)), leaf)
                for number, (path, leaf) in enumerate(ordered.items())
            }
            return {path: read[path] for path in like}
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"the checkpoint {place} is as it was written, but this version cannot read it: "
            f"{first_line(error)}"
        ) from error
    more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
    raise ValueError(
        f"the checkpoint {place} is of another model or another version: "
        f"{'; '.join(odd[:3])}{more}."
    )


def _read_arrays(place: Any, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    if (place / _OWN_ARRAYS).exists():
        with (place / _OWN_ARRAYS).open("rb") as file, np.load(file) as arrays:
            put = lambda name, to: jax.device_put(arrays[name].view(to.dtype), to.sharding)
            return {name: put(name, to) for name, to in wanted.items()}
    with _orbax() as orbax:
        return orbax.restore(absolute(place / _ARRAYS), args=ocp.args.StandardRestore(wanted))


def _orbax() -> ocp.Checkpointer:
    """Orbax; one of many processes saves or restores without waiting for the others."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process-{process}",
    )
    options: Any = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
    # Each array in files of its own: Orbax merges those of its other format by a glob, which finds
    # nothing where the path has brackets.
    handler = ocp.StandardCheckpointHandler(use_ocdbt=False, **options)
    return ocp.Checkpointer(handler, **options)


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
