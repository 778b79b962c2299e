"""What a model learned as safetensors, which any framework reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from reptile_jax.deploy.adaptable import AdaptableModel


def saved(learned: Mapping[str, Any]) -> bytes:
    """Pytrees as safetensors, with each array under its path: "params/Conv_0/kernel"."""
    return safetensors.numpy.save(
        {path: np.asarray(leaf) for path, leaf in _by_path(learned).items()}
    )


def loaded(like: AdaptableModel, content: bytes) -> AdaptableModel:
    """The model with the parameters and the inner optimiser's state that `saved` wrote."""
    learned = {"params": like.params, "inner_opt_state": like.inner_opt_state}
    arrays = safetensors.numpy.load(content)
    leaves = [jnp.asarray(arrays[path]) for path in _by_path(learned)]
    return dataclasses.replace(like, **jax.tree.unflatten(jax.tree.structure(learned), leaves))


def _by_path(tree: Any) -> dict[str, Any]:
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
