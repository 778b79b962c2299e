"""How many tasks run side by side under `vmap`, by the platform that the program is compiled for.

On a CPU, batched matrix products over tasks are slower than one task after another. On a TPU, the
arrays of an inner step have to stay in the chip's own memory: beyond it, a task costs twice as
much (`docs/results/speed.md` has the table of estimates). A GPU takes all.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax

from reptile_jax._types import Repeated

# What a task brings to an inner step on a TPU: θ, and activations of some 16 times its mini-batch.
_TPU_BYTES, _ACTIVATIONS = 24 * 2**20, 16


def by_platform(run: Callable[..., Any], number: int, params: Any, support: Any) -> Callable:
    """`run(at_once, *args)` as a function of `args`, with the platform's number of tasks at once.

    Args:
      run: the result must not depend on `at_once`, but for rounding.
      number: the tasks; none of the numbers at once is larger.
      params, support: the shapes of θ and of one task's support set: leaves led by `[steps]`, or
        `Repeated`, all of which an inner step takes.
    """
    steps = 1 if isinstance(support, Repeated) else len(jax.tree.leaves(support)[0])
    task = _bytes(params) + _ACTIVATIONS * _bytes(support) / max(steps, 1)
    on_tpu = 2 ** int(math.log2(max(1, _TPU_BYTES / max(task, 1))))  # rows come in powers of two
    sizes = {"cpu": 1, "tpu": on_tpu}
    branches = {name: partial(run, size) for name, size in sizes.items() if size < number}
    return lambda *args: lax.platform_dependent(*args, default=partial(run, number), **branches)


def _bytes(tree: Any) -> float:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
