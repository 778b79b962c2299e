"""Checkpoints of a `MetaState`, by Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from reptile_jax.reptile import MetaState


def save(folder: Path, state: MetaState) -> None:
    """Saves the state under its step; the two newest stay."""
    with _manager(folder) as manager:
        manager.save(int(state.step), args=ocp.args.StandardSave(state))


def restore(folder: Path, like: MetaState) -> MetaState:
    """Restores the newest state.

    Args:
      folder: the run's checkpoint folder.
      like: a state of the same structure, shapes and dtypes; `jax.eval_shape(learner.init, params)`
        makes one that takes no memory.

    Raises:
      FileNotFoundError: if there is no checkpoint.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}.")
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"there is no checkpoint in {folder}.")
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return manager.restore(step, args=ocp.args.StandardRestore(like))


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options)
