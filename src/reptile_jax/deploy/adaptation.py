"""The computation of an adaptation: pure functions, compiled for each `How` and each shape."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._types import Adapted, Apply, Batch, Optimizer, OptState, Params
from reptile_jax.nn import classifier_mask, cross_entropy, squared_error
from reptile_jax.reptile import inner_loop
from reptile_jax.tasks import query_logits


class Trajectory(NamedTuple):
    """What a model answers in the course of one adaptation."""

    predictions: jax.Array  # [inner steps + 1, queries, ways], at the start and after every step
    losses: jax.Array  # [inner steps], of each mini-batch before its step


class How(NamedTuple):
    """What a program is compiled for, besides shapes."""

    apply: Apply
    optimizer: Optimizer
    ways: int | None
    steps: int
    batch_size: int | None
    balanced: bool
    training_batch: int | None
    seed: int
    prototypes: Callable[[Params, Batch], Params] | None


@functools.partial(jax.jit, static_argnums=0)
def adapt(how: How, params: Params, opt_state: OptState, support, targets) -> Adapted:
    params = _started(how, params, support, targets)
    return inner_loop(
        _loss_fn(how), how.optimizer, params, _batches(how, support, targets), opt_state
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def answer(how: How, transductive: bool, params: Params, support, query) -> jax.Array:
    if how.ways is None:
        return how.apply(params, query)
    logits = query_logits(how.apply, params, support, query, transductive=transductive)
    return jax.nn.softmax(logits[:, : how.ways])


@functools.partial(jax.jit, static_argnums=(0, 1))
def predict(how, transductive, params, opt_state, support, targets, query) -> jax.Array:
    adapted = adapt(how, params, opt_state, support, targets)
    return answer(how, transductive, adapted.params, support, query)


@functools.partial(jax.jit, static_argnums=(0, 1))
def trajectory(how, transductive, params, opt_state, support, targets, query) -> Trajectory:
    loss_fn, params = _loss_fn(how), _started(how, params, support, targets)
    now = lambda params: answer(how, transductive, params, support, query)

    def step(start, batch):
        one = jax.tree.map(lambda leaf: leaf[None], batch)
        adapted = inner_loop(loss_fn, how.optimizer, start[0], one, start[1])
        return (adapted.params, adapted.opt_state), (now(adapted.params), adapted.losses[0])

    start = params, how.optimizer.init(params) if opt_state is None else opt_state
    _, (after, losses) = jax.lax.scan(step, start, _batches(how, support, targets))
    return Trajectory(jnp.concatenate([now(params)[None], after]), losses)


def adaptation_loss(
    apply: Apply,
    training_batch: int | None,
    batch_size: int,
    *,
    balanced: bool,
    prototypes: int | None = None,
) -> Callable[[Params, Batch], jax.Array]:
    """The loss that tasks are adapted by, in mini-batches of `batch_size`.

    Weighed as in training, whose second moment Adam starts from. Balanced mini-batches of many
    classes have to be larger than training's: their sum would make longer steps than any there, so
    that they take the mean. The paper's protocol, which is not balanced, takes the sum.

    Training by `prototypes`, here of as many classes, took a mean over mini-batches of any number
    of classes. So the divisor is not training's size but the ways: a mini-batch of one image of
    each class has the mean, and one of half the classes half of that.
    """
    training_batch = training_batch if prototypes is None else prototypes
    if balanced and training_batch is not None:
        training_batch = max(training_batch, batch_size)
    return cross_entropy(apply, training_batch)


def resized(ways: int, tree: Any) -> Any:
    """Parameters or a state with a classifier that is not meta-learned, for another number of ways.

    Such a classifier is zero, and so one for any number of classes. The inner optimiser's state of
    it is averaged over the classes that it was trained with, which are drawn in a uniform order, so
    that nothing tells them apart. For another number of ways that is an approximation: gradients of
    the classifier shrink with the number of classes. Training by prototypes has none: that state is
    zero, and the classifier's first steps by Adam are up to 1 / √(1 - β2) times as long.
    """

    def resize(is_classifier, leaf):  # whose last axis is the ways
        if not is_classifier or leaf.shape[-1:] == (ways,):
            return leaf
        return jnp.broadcast_to(leaf.mean(-1, keepdims=True), (*leaf.shape[:-1], ways))

    return jax.tree.map(resize, classifier_mask(tree), tree)


def _loss_fn(how: How) -> Callable[[Params, Batch], jax.Array]:
    if how.ways is None:
        return squared_error(how.apply)
    size = how.ways * _of_each_class(how)
    return adaptation_loss(
        how.apply,
        how.training_batch,
        size,
        balanced=how.balanced,
        prototypes=how.ways if how.prototypes else None,
    )


def _started(how: How, params: Params, support: jax.Array, targets: jax.Array) -> Params:
    """Where the task starts."""
    return how.prototypes(params, Batch(support, targets)) if how.prototypes else params


def _batches(how: How, support: jax.Array, targets: jax.Array) -> Batch:
    index = order(how, targets)
    return Batch(support[index], targets[index])


def order(how: How, targets: jax.Array) -> jax.Array:
    """Indices `[steps, batch]`: shuffled and cycled through, if balanced then class by class.

    Traced labels, and a support set of symbolic size, do as well.
    """
    number = targets.shape[0]
    if how.batch_size is None:
        return jnp.broadcast_to(jnp.arange(number), (how.steps, number))
    ways, labels, each = 1, jnp.zeros(number, jnp.int32), how.batch_size
    passes = -(-how.steps * each // number)
    if how.balanced and how.ways is not None:
        ways, labels, each = how.ways, targets, _of_each_class(how)
        passes = how.steps * each  # of a class with one example
    words = jax.random.bits(jax.random.key(how.seed), (passes, number))
    index = jnp.arange(number, dtype=jnp.int32)
    keys = [jnp.broadcast_to(row, (passes, number)) for row in (labels, index)]
    shuffled = jax.lax.sort((keys[0], words, keys[1]), num_keys=2)[2]  # each pass, by class
    sizes = counts(ways, labels)
    draw = jnp.arange(how.steps * each)
    turn, place = jnp.divmod(draw[None], sizes[:, None])  # [ways, draws]
    index = shuffled[turn, (jnp.cumsum(sizes) - sizes)[:, None] + place]
    return index.reshape(ways, how.steps, each).swapaxes(0, 1).reshape(how.steps, ways * each)


def _of_each_class(how: How) -> int:
    """Examples of each class in a balanced mini-batch: at least one."""
    return max(1, round((how.batch_size or 1) / (how.ways or 1)))


def counts(ways: int, labels: jax.Array) -> jax.Array:
    """Examples of each class `[ways]`."""
    return (labels[None] == jnp.arange(ways)[:, None]).sum(1, dtype=jnp.int32)


def scaled(inputs: Any) -> jax.Array:
    """Images in [0, 1]; other inputs as they are.

    Raises:
      ValueError: for images of other integers than uint8, which do not say how far they reach.
    """
    kind = inputs.dtype if hasattr(inputs, "dtype") else np.asarray(inputs).dtype
    if kind.kind in "iu" and kind != np.uint8 and np.ndim(inputs) == 4:
        raise ValueError(
            f"images are uint8, or floating-point from 0 to 1, got {kind}: give images / 255, or "
            "images.astype(np.uint8), if they are from 0 to 255."
        )
    return jnp.asarray(inputs, jnp.float32) / (255 if kind == np.uint8 else 1)
