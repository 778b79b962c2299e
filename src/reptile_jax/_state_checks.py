"""Checks that a state belongs to this learner and has not been donated.

Compiled programs check neither.
"""

from typing import Any

import jax

from reptile_jax._types import MetaState, TaskState
from reptile_jax._values import kind, same_shapes


def check_own(
    optimizer: Any,
    state: MetaState | TaskState,
    part: str,
    what: str,
    whose: str = "learner",
    made_by: str = "learner.init(params)",
) -> None:
    """Raises a ValueError unless a part of the state is of the optimiser, for its parameters."""
    given, expected = getattr(state, part), jax.eval_shape(optimizer.init, state.params)
    if not same_shapes(given, expected):
        raise ValueError(
            f"this state is of another {whose}: its {part} is {kind(given)!s:.200}, but that of "
            f"this {what} is {kind(expected)!s:.200}. Use the {whose} that made it, or start "
            f"from {made_by}."
        )


def check_usable(state: Any, *, donated: bool = False) -> None:
    """Raises a ValueError for a state that was donated, or that cannot be `donated`."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if _is_array(leaf)]
    is_one_twice = donated and len({*map(id, arrays)}) < len(arrays)
    if is_one_twice or any(leaf.is_deleted() for leaf in arrays):
        _raise_unusable(state, donated)  # paths take time, and every step comes by here


def _raise_unusable(state: Any, donated: bool) -> None:
    paths: dict[int, str] = {}
    copy = "jax.tree.map(jnp.copy, state)"
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not _is_array(leaf):
            continue
        path = jax.tree_util.keystr(keys).removeprefix(".")
        if leaf.is_deleted():
            raise ValueError(
                "this state was donated: what took it, `train`, `meta_steps` or `step`, has used "
                f"up its memory ({path}). Go on with the state that it gave, or give it a copy, "
                f"{copy}."
            )
        if donated and paths.setdefault(id(leaf), path) != path:
            raise ValueError(
                f"this state has one array twice, as {paths[id(leaf)]} and {path}, but its memory "
                f"can be used up once: give a copy, {copy}."
            )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
