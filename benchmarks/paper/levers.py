"""What recipes are made of: changes of tasks, optimisers and classifiers that no preset has."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj

Start = Callable[[Any, rj.Batch], Any]  # (params, support set) -> params


def started(
    start: Start, loss_fn: Callable[..., Any], inner: optax.GradientTransformation
) -> rj.MetaGradient:
    """Reptile whose classifier starts from a task's first mini-batch, which gives no inner step.

    The classifier's own part of the meta-gradient means nothing: leave it out.
    """

    def compute(params, opt_state, task):
        first, rest = (
            jax.tree.map(lambda x, at=at: x[at], task.support) for at in (0, slice(1, None))
        )
        adapted = rj.inner_loop(loss_fn, inner, start(params, first), rest, opt_state)
        delta = jax.tree.map(jnp.subtract, params, adapted.params)
        # As many losses as mini-batches: the first has none of its own.
        losses = jnp.concatenate([adapted.losses[:1], adapted.losses])
        return rj.TaskGradient(delta, adapted.opt_state, losses)

    return rj.MetaGradient(inner.init, compute)


def rates(
    inner: optax.GradientTransformation, body: float, classifier: float
) -> optax.GradientTransformation:
    """`inner` with its steps so many times as long; its state is the same."""

    def update(grads, state, params=None):
        updates, state = inner.update(grads, state, params)
        scaled = lambda at, leaf: (classifier if at else body) * leaf
        return jax.tree.map(scaled, rj.nn.classifier_mask(updates), updates), state

    return optax.GradientTransformation(inner.init, update)


class TailMean(NamedTuple):
    """The state of `tail_mean`."""

    inner: optax.OptState
    mean: Any
    count: jax.Array


def tail_mean(optimizer: optax.GradientTransformation, after: int) -> optax.GradientTransformation:
    """`optimizer`, whose state also has the mean of the parameters `after` so many steps."""

    def init(params):
        return TailMean(optimizer.init(params), params, jnp.int32(0))

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state.inner, params)
        moved, count = optax.apply_updates(params, updates), state.count + 1
        share = 1 / jnp.maximum(1, count - after).astype(jnp.float32)
        mean = jax.tree.map(lambda old, new: old + share * (new - old), state.mean, moved)
        return updates, TailMean(inner, mean, count)

    return optax.GradientTransformation(init, update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves:
    """Tasks whose mini-batches are cut in two, at random: twice the inner steps."""

    tasks: Any

    def sample(self, key: jax.Array) -> rj.Task:
        task_key, cut_key = jax.random.split(key)
        task = self.tasks.sample(task_key)
        steps, size = task.support.targets.shape
        keys = jax.random.split(cut_key, steps)
        order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)

        def cut(leaf):
            leaf = jax.vmap(lambda rows, order: rows[order])(leaf, order)
            return leaf.reshape(2 * steps, size // 2, *leaf.shape[2:])

        return task._replace(support=jax.tree.map(cut, task.support))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FirstAgain:
    """Tasks whose first mini-batch is shown so many `times` before the second; as many steps."""

    tasks: Any
    times: int = dataclasses.field(metadata={"static": True})

    def sample(self, key: jax.Array) -> rj.Task:
        task = self.tasks.sample(key)
        later = jnp.arange(1, len(task.support.targets) - self.times + 1)
        order = jnp.concatenate([jnp.zeros(self.times, later.dtype), later])
        return task._replace(support=jax.tree.map(lambda leaf: leaf[order], task.support))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distorted:
    """Tasks whose support images are drawn through affine maps, and mirrored.

    A map differs from the identity by normal numbers: `classes` times as large for each class, so
    that it is another character, plus `images` times for each image of each step. Shifts are in
    units of half an image. Queries stay as they are.
    """

    tasks: Any
    classes: float = dataclasses.field(default=0.0, metadata={"static": True})
    images: float = dataclasses.field(default=0.0, metadata={"static": True})
    mirrored: bool = dataclasses.field(default=False, metadata={"static": True})

    def sample(self, key: jax.Array) -> rj.Task:
        task_key, class_key, image_key, flip_key = jax.random.split(key, 4)
        task = self.tasks.sample(task_key)
        inputs, targets = task.support
        ways = targets.size  # as many as there can be
        maps = self.images * jax.random.normal(image_key, (*targets.shape, 2, 3))
        maps += self.classes * jax.random.normal(class_key, (ways, 2, 3))[targets]
        if self.mirrored:
            flips = jax.random.bernoulli(flip_key, shape=(ways,))[targets]
            inputs = jnp.where(flips[..., None, None, None], inputs[..., ::-1, :], inputs)
        if self.classes or self.images:
            flat = affine(inputs.reshape(-1, *inputs.shape[2:]), maps.reshape(-1, 2, 3))
            inputs = flat.reshape(inputs.shape)
        return task._replace(support=rj.Batch(inputs, targets))


def affine(images: jax.Array, maps: jax.Array) -> jax.Array:
    """Images `[n, height, width, 1]` through I + `maps` `[n, 2, 3]`; what is outside is white."""
    height, width = images.shape[1:3]
    axes = (jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width))
    grid = jnp.stack([*jnp.meshgrid(*axes, indexing="ij"), jnp.ones((height, width))])

    def through(image, change):
        places = grid[:2] + jnp.tensordot(change, grid, 1)
        scale = jnp.array([height - 1, width - 1], jnp.float32)[:, None, None] / 2
        rows, columns = (places + 1) * scale
        drawn = jax.scipy.ndimage.map_coordinates(
            image[..., 0], [rows, columns], order=1, mode="constant", cval=1.0
        )
        return drawn[..., None]

    return jax.vmap(through)(images, maps)
