"""N-way K-shot episodes, drawn on the device from one array of images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax.models import Apply
from reptile_jax.reptile import Params
from reptile_jax.tasks import Batch, Key, Task, check_integers, minibatch_order


class ImageClasses(NamedTuple):
    """Images grouped by class in one array; classes may differ in size.

    The images of class `c` are `images[starts[c] : starts[c] + counts[c]]`.
    """

    images: jax.Array | np.ndarray  # [images, height, width, channels] uint8
    starts: jax.Array | np.ndarray  # [classes] int32
    counts: jax.Array | np.ndarray  # [classes] int32


class Episode(NamedTuple):
    """A query set, which is a `Batch` to a loss, and the support set whole, for scoring."""

    inputs: Any  # [ways * query_shots, height, width, channels]
    targets: Any  # [ways * query_shots]
    support: Batch  # [ways * shots, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FewShot:
    """p(τ) over N-way K-shot episodes. Make one with `few_shot`."""

    classes: ImageClasses
    ways: int = dataclasses.field(metadata={"static": True})
    shots: int = dataclasses.field(metadata={"static": True})
    query_shots: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})
    balanced: bool = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One episode: support `Batch` `[steps, batch_size, ...]`, query an `Episode`.

        Inputs are float32 in [0, 1], labels int32: the class's position among the classes drawn.
        """
        class_key, image_key, batch_key = jax.random.split(key, 3)
        drawn = draw_distinct(class_key, self.classes.starts.shape[0], self.ways)
        counts = jnp.asarray(self.classes.counts)[drawn]
        picks = jax.vmap(draw_distinct, (0, 0, None))(
            jax.random.split(image_key, self.ways), counts, self.shots + self.query_shots
        )
        index = jnp.asarray(self.classes.starts)[drawn][:, None] + picks
        support = index[:, : self.shots].reshape(-1)
        labels = jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), self.shots)
        order = self._minibatch_order(batch_key)
        batches = Batch(self._images(support[order]), labels[order])
        if not self.query_shots:
            return Task(batches)
        query = Episode(
            self._images(index[:, self.shots :].reshape(-1)),
            jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), self.query_shots),
            Batch(self._images(support), labels),
        )
        return Task(batches, query)

    def _minibatch_order(self, key: Key) -> jax.Array:
        """Indices `[steps, batch_size]` into the support set, which stands class by class."""
        draw = functools.partial(minibatch_order, steps=self.steps, replace=self.replace)
        if not self.balanced:
            return draw(key, self.ways * self.shots, batch_size=self.batch_size)
        keys, each = jax.random.split(key, self.ways), self.batch_size // self.ways
        within = jax.vmap(lambda key: draw(key, self.shots, batch_size=each))(keys)
        firsts = self.shots * jnp.arange(self.ways)  # of each class
        order = firsts[:, None, None] + within  # [ways, steps, each]
        return order.swapaxes(0, 1).reshape(self.steps, self.batch_size)

    def _images(self, index: jax.Array) -> jax.Array:
        return jnp.asarray(self.classes.images)[index].astype(jnp.float32) / 255


def few_shot(
    classes: ImageClasses,
    *,
    ways: int,
    shots: int,
    steps: int,
    batch_size: int,
    query_shots: int = 0,
    replace: bool = False,
    balanced: bool = False,
) -> FewShot:
    """Episodes over `classes`: `ways` distinct ones, and of each distinct images.

    Args:
      classes: put on the device here.
      ways: classes in an episode, N.
      shots: support images of each class, K. The paper trains with more than it evaluates with.
      steps, batch_size: the inner loop's mini-batches of the support set, as in `minibatches`.
      query_shots: query images of each class.
      replace: draw each mini-batch afresh.
      balanced: each mini-batch has `batch_size / ways` images of every class, for which each class
        is shuffled and cycled through by itself. Not the paper's, but batch norm, which sees whole
        mini-batches, meets such ones in 1-shot evaluation by batches of `ways`.

    Raises:
      TypeError: for sizes that are not integers, or images that are not uint8.
      ValueError: for sizes below 1, more classes or images than there are, classes that lie outside
        the array of images, balanced mini-batches whose size is no multiple of `ways`, and with
        `replace` for mini-batches larger than the support set.
    """
    check_integers(ways=ways, shots=shots, steps=steps, batch_size=batch_size)
    check_integers(0, query_shots=query_shots)
    _check_classes(classes)
    counts = np.asarray(classes.counts, np.int64)
    num_classes, fewest = len(counts), int(np.min(counts, initial=2**31 - 1))
    if ways > num_classes:
        raise ValueError(f"ways={ways}, but there are only {num_classes} classes.")
    if shots + query_shots > fewest:
        raise ValueError(
            f"shots={shots} and query_shots={query_shots} need {shots + query_shots} images of "
            f"each class, but class {int(np.argmin(counts))} has {fewest}."
        )
    if balanced and batch_size % ways:
        raise ValueError(
            f"balanced mini-batches of {batch_size} cannot hold {ways} classes equally often: make "
            "batch_size a multiple of ways."
        )
    if replace and batch_size > ways * shots:
        raise ValueError(
            f"with replace, a batch of {batch_size} is drawn from {ways * shots} support images: "
            "lower batch_size."
        )
    classes = jax.tree.map(jnp.asarray, classes)
    return FewShot(classes, ways, shots, query_shots, steps, batch_size, replace, balanced)


def _check_classes(classes: ImageClasses) -> None:
    if not isinstance(classes, ImageClasses):
        raise TypeError(f"classes are ImageClasses, got {type(classes).__name__}.")
    if not all(hasattr(array, "dtype") for array in classes):
        raise TypeError("images, starts and counts of ImageClasses are arrays.")
    images, starts, counts = (array.shape for array in classes)
    if not all(np.issubdtype(array.dtype, np.integer) for array in classes[1:]):
        raise TypeError("starts and counts of ImageClasses are integers.")
    if np.dtype(classes.images.dtype) != np.uint8:
        raise TypeError(f"images are uint8, 0 to 255, got {classes.images.dtype}.")
    if len(images) < 1 or len(starts) != 1 or starts != counts:
        raise ValueError(
            "ImageClasses are images [images, ...], starts [classes] and counts [classes], got "
            f"shapes {images}, {starts} and {counts}."
        )
    ends = np.asarray(classes.starts, np.int64) + np.asarray(classes.counts)
    if np.min(classes.starts, initial=0) < 0 or np.max(ends, initial=0) > images[0]:
        raise ValueError(f"the classes' starts and counts reach outside the {images[0]} images.")


def draw_distinct(key: Key, size: int | jax.Array, number: int) -> jax.Array:
    """Draws `number` distinct integers below `size` (which may be traced), in uniform order.

    The first `number` swaps of a Fisher-Yates shuffle of 0 ... size - 1. The array is never made:
    a place that no swap has touched holds its own index, and the others are looked up among the
    swaps before, so the cost is O(number²) whatever the size.
    """
    places = jnp.arange(number, dtype=jnp.int32)
    targets = jax.random.randint(key, (number,), places, size, jnp.int32)

    def swap(moved, i):
        # moved[s] is what swap s put at place targets[s]; a later swap hides an earlier one.
        def at(place):
            last = jnp.max(jnp.where((targets == place) & (places < i), places, -1))
            return jnp.where(last >= 0, moved[last], place)

        drawn, displaced = at(targets[i]), at(i)
        return moved.at[i].set(displaced), drawn

    return jax.lax.scan(swap, places, places)[1]


def query_logits(
    apply: Apply, params: Params, support: jax.Array, query: jax.Array, *, transductive: bool
) -> jax.Array:
    """Logits `[queries, ways]`, with the query images normalised together or one by one.

    Transductive: all query images in one batch, so that batch norm sees them together, without the
    support set. Otherwise: each query image in a batch with the whole support set (Nichol et al.
    2018, section 6.1).

    Args:
      apply: `(params, images) -> logits`.
      support, query: images `[support, ...]` and `[queries, ...]`.
    """
    if transductive:
        return apply(params, query)
    alone = lambda image: apply(params, jnp.concatenate([support, image[None]]))[-1]
    # Side by side as long as some 64 images are worked on at a time: more would only take memory.
    at_once = max(1, 64 // (support.shape[0] + 1))
    return jax.lax.map(alone, query, batch_size=min(at_once, query.shape[0]))


def accuracy(apply: Apply) -> Callable[[Params, Task], dict[str, jax.Array]]:
    """A score for `evaluate` on `FewShot`: the share of query images classified correctly.

    Both ways of `query_logits`, by name: "transductive" and "non-transductive". Logits that are
    not finite are wrong.
    """

    def score(params: Params, task: Task) -> dict[str, jax.Array]:
        if task.query is None:
            raise ValueError("accuracy needs query images: give few_shot at least query_shots=1.")
        inputs, labels, support = task.query

        def share_correct(transductive: bool) -> jax.Array:
            logits = query_logits(apply, params, support.inputs, inputs, transductive=transductive)
            right = jnp.argmax(logits, -1).astype(labels.dtype) == labels
            return jnp.mean((right & jnp.isfinite(logits).all(-1)).astype(jnp.float32))

        return {"transductive": share_correct(True), "non-transductive": share_correct(False)}

    return score
