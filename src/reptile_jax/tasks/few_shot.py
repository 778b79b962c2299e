"""N-way K-shot episodes, drawn on the device from one array of images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._checks import check_integers
from reptile_jax._types import Apply, Batch, ImageClasses, Key, Params, Task
from reptile_jax.tasks.minibatches import minibatch_order


class Episode(NamedTuple):
    """A query set, which a loss reads like a `Batch`, and the whole support set, for scoring."""

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
        """Indices `[steps, batch_size]` into the support set, which is sorted by class."""
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
    """Episodes of `ways` distinct classes, with distinct images of each (Nichol et al. 2018).

    Args:
      classes: images by class; they are moved to the device.
      ways: classes in an episode, N.
      shots: support images of each class, K. The paper trains with more than it evaluates with.
      steps, batch_size: the inner loop's mini-batches of the support set, as in `minibatches`.
      query_shots: query images of each class.
      replace: draw each mini-batch independently.
      balanced: each mini-batch has `batch_size / ways` images of every class; each class is
        shuffled and cycled through separately. The paper trains without this, but its 1-shot
        evaluation has such mini-batches, and batch norm normalises over each of them.

    Raises:
      TypeError: for sizes that are not integers, or images that are not uint8.
      ValueError: for sizes below 1, more classes or images than there are, classes outside the
        array of images, balanced mini-batches whose size is not a multiple of `ways`, and with
        `replace` for mini-batches larger than the support set.
    """
    check_integers(ways=ways, shots=shots, steps=steps, batch_size=batch_size)
    check_integers(0, query_shots=query_shots)
    _check_classes(classes)
    counts = np.asarray(classes.counts, np.int64)
    fewest = int(np.min(counts, initial=2**31 - 1))
    problem = None
    if ways > len(counts):
        problem = f"ways={ways}, but there are only {len(counts)} classes."
    elif shots + query_shots > fewest:
        problem = (
            f"shots={shots} and query_shots={query_shots} need {shots + query_shots} images of "
            f"each class, but class {int(np.argmin(counts))} has {fewest}."
        )
    elif balanced and batch_size % ways:
        problem = (
            f"balanced mini-batches of {batch_size} cannot contain {ways} classes equally often: "
            "make batch_size a multiple of ways."
        )
    elif replace and batch_size > ways * shots:
        problem = (
            f"with replace, a batch of {batch_size} is drawn from {ways * shots} support images: "
            "lower batch_size."
        )
    if problem:
        raise ValueError(problem)
    classes = jax.tree.map(jnp.asarray, classes)
    return FewShot(classes, ways, shots, query_shots, steps, batch_size, replace, balanced)


def _check_classes(classes: ImageClasses) -> None:
    """Raises unless these are uint8 images, with starts and counts of classes inside them."""
    given = classes if isinstance(classes, ImageClasses) else (classes,)
    kinds = [str(getattr(array, "dtype", type(array).__name__)) for array in given]
    if len(given) < 3 or kinds[0] != "uint8" or not all("int" in kind[:4] for kind in kinds[1:]):
        raise TypeError(
            "classes are ImageClasses of arrays: uint8 images, 0 to 255, and integer starts and "
            f"counts; got {', '.join(kinds)}."
        )
    images, starts, counts = (array.shape for array in classes)
    problem = None
    if len(images) < 1 or len(starts) != 1 or starts != counts:
        problem = (
            "ImageClasses are images [images, ...], starts [classes] and counts [classes], got "
            f"shapes {images}, {starts} and {counts}."
        )
    elif (
        np.min(classes.starts, initial=0) < 0
        or np.max(np.asarray(classes.starts, np.int64) + classes.counts, initial=0) > images[0]
    ):
        problem = f"the classes' starts and counts point outside the {images[0]} images."
    if problem:
        raise ValueError(problem)


def draw_distinct(key: Key, size: int | jax.Array, number: int) -> jax.Array:
    """Draws `number` distinct integers below `size` (which may be traced), in uniform order.

    These are the first `number` swaps of a Fisher-Yates shuffle of 0 ... size - 1, without the
    array: a place that no swap has touched contains its own index, and the others are found among
    the earlier swaps. So the cost is O(number²) whatever the size.
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

    Transductive: all query images form one batch, without the support set, so batch norm normalises
    them together. Otherwise each query image is in a batch with the whole support set (Nichol et
    al. 2018, section 6.1).

    Args:
      apply: `(params, images) -> logits`.
      support, query: images `[support, ...]` and `[queries, ...]`.
    """
    if transductive:
        return apply(params, query)
    alone = lambda image: apply(params, jnp.concatenate([support, image[None]]))[-1]
    # Vectorised over about 64 images at a time: more would only take memory.
    at_once = max(1, 64 // (support.shape[0] + 1))
    return jax.lax.map(alone, query, batch_size=min(at_once, query.shape[0]))


def accuracy(apply: Apply) -> Callable[[Params, Task], dict[str, jax.Array]]:
    """A score for `evaluate` on `FewShot`: the share of query images classified correctly.

    It has both modes of `query_logits` by name, "transductive" and "non-transductive". Logits that
    are not finite count as wrong.

    Raises:
      ValueError: at tracing, if the task has no query set.
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
