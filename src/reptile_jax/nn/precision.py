"""Mixed precision: a loss or a network computes in bfloat16, and all that is learned is float32."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def in_bfloat16(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same loss, or the same `apply` of a network, computed in bfloat16.

    It rounds its first and its last argument to bfloat16, the parameters and the batch or the
    inputs, and returns float32. It does not cast a model state, which is between them and stays in
    float32, arguments by keyword, or arrays that are not floating-point. Gradients have bfloat16's
    accuracy, 3 digits, and float32's type: θ, adapted parameters, optimiser states and sums over
    tasks stay in float32, in which steps far below bfloat16's rounding of a parameter add up.

    Args:
      function: `(params, batch) -> loss` in any form of `inner_loop`, or `(params, inputs) ->
        outputs`. Around a network, as in `cross_entropy(in_bfloat16(model.apply))`, the loss of its
        outputs is in float32; around a loss, all of it is in bfloat16.

    Source: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740. bfloat16 has
    float32's range, so the loss needs no scaling.
    """

    @functools.wraps(function)
    def computed(*args, **kwargs):
        ends = (0, len(args) - 1)
        given = [_to(jnp.bfloat16, arg) if i in ends else arg for i, arg in enumerate(args)]
        return _to(jnp.float32, function(*given, **kwargs), jnp.bfloat16)

    return computed


def _to(dtype: Any, tree: Any, only: Any = jnp.floating) -> Any:
    """The tree with this dtype in place of `only`."""
    is_cast = lambda leaf: hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, only)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_cast(leaf) else leaf, tree)
