"""The inner loop's mini-batches, drawn from one task's support examples.

The inner loop never samples: it scans over the given mini-batches. So sampling with or without
replacement is a property of tasks, not of the algorithm.
"""

import jax
import jax.numpy as jnp

from reptile_jax._types import Batches, Examples, Key
from reptile_jax._values import check_integers, check_key, check_leading_axis
from reptile_jax.tasks.repeated import repeat


def minibatches(
    key: Key,
    examples: Examples,
    *,
    steps: int,
    batch_size: int | None = None,
    replace: bool = False,
) -> Batches:
    """Draws the inner loop's mini-batches from one task's support examples.

    By default examples are shuffled and cut into consecutive batches, with a new shuffle after each
    pass; a batch may contain parts of two passes. This is the sampler of the paper's released code
    (Nichol et al. 2018); it is not class-balanced. If a batch consists of whole passes, the
    examples keep their order.

    Args:
      key: consumed.
      examples: a pytree, leaves `[examples, ...]`.
      steps: number of mini-batches, at least 1.
      batch_size: examples in each, at least 1. None is all of them, without a copy for each step.
      replace: draw every batch independently, without replacement inside the batch.

    Returns:
      The pytree with leaves `[steps, batch_size, ...]`; with `batch_size=None`, `Repeated`.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for sizes below 1, for no examples, for leaves that disagree on their number, and
        with `replace` for batches larger than the number of examples.
    """
    num_examples = check_leading_axis(examples, "examples", "a task's support set")
    if batch_size is None:
        check_key(key)
        return repeat(jax.tree.map(jnp.asarray, examples), steps)
    order = minibatch_order(key, num_examples, steps=steps, batch_size=batch_size, replace=replace)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], examples)


def minibatch_order(
    key: Key, num_examples: int, *, steps: int, batch_size: int, replace: bool = False
) -> jax.Array:
    """The indices that `minibatches` uses: `[steps, batch_size]` integers below `num_examples`.

    Arguments and errors are as in `minibatches`.
    """
    check_key(key)
    num_examples, steps, batch_size = check_integers(
        num_examples=num_examples, steps=steps, batch_size=batch_size
    )
    if replace and batch_size > num_examples:
        raise ValueError(
            f"a batch of {batch_size} cannot be drawn without repetition from {num_examples} "
            "examples: lower batch_size or give more examples."
        )
    if batch_size % num_examples == 0:  # whole passes: a shuffle would only reorder each batch
        return jnp.tile(jnp.arange(num_examples), (steps, batch_size // num_examples))
    passes = steps if replace else -(-steps * batch_size // num_examples)
    shuffles = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(
        jax.random.split(key, passes)
    )
    if replace:
        return shuffles[:, :batch_size]
    return shuffles.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def shuffles(words: jax.Array) -> jax.Array:
    """Uniform permutations `[shuffles, size]` by sorting random words `[shuffles, size]` uint32.

    Each word's low bits are replaced by its index, so only words are sorted: on a CPU many times
    faster than `jax.random.permutation`, which sorts pairs. Words that agree in all other bits keep
    their order, so i comes before j with a probability of at most 1/2 + size / 2^32.
    """
    size = words.shape[-1]
    low = (1 << (size - 1).bit_length()) - 1
    mask, index = jnp.uint32(low), jnp.arange(size, dtype=jnp.uint32)[None]
    return (jnp.sort((words & ~mask) | index, stable=False) & mask).astype(jnp.int32)
