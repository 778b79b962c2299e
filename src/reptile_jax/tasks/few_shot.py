"""N-way K-shot episodes, drawn on the device from arrays of examples: images, signals, tokens."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._types import Apply, Batch, Examples, ImageClasses, Key, Params, Task
from reptile_jax._values import check_integers, check_leading_axis
from reptile_jax.tasks.minibatches import minibatch_order
from reptile_jax.tasks.repeated import repeat


class Classes(NamedTuple):
    """Examples grouped by class; classes may differ in size. `group_by_class` makes it.

    The examples of class `c` are those from `starts[c]` to `starts[c] + counts[c]`.
    """

    examples: Examples  # any pytree of arrays led by [examples]
    starts: jax.Array | np.ndarray  # [classes] int32
    counts: jax.Array | np.ndarray  # [classes] int32


def group_by_class(examples: Examples, labels: Any) -> Classes:
    """Sorts examples by their labels `[examples]`, one class for each label, in sorted order.

    Args:
      examples: a pytree of arrays, leaves `[examples, ...]`, outside `jit`.
      labels: integers or names.

    Raises:
      ValueError: if there is not one label for each example.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels are one for each example, [examples], got {list(labels.shape)}.")
    check_leading_axis((examples, labels), "examples", "(examples, labels)")
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    by_class = jax.tree.map(lambda leaf: leaf[order], examples)
    return Classes(by_class, starts.astype(np.int32), counts.astype(np.int32))


class Episode(NamedTuple):
    """A query set, which a loss reads like a `Batch`, and the whole support set, for scoring."""

    inputs: Any  # [ways * query_shots, ...]
    targets: Any  # [ways * query_shots]
    support: Batch  # [ways * shots, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FewShot:
    """p(τ) over N-way K-shot episodes. Make one with `few_shot`."""

    classes: Classes | ImageClasses
    ways: int = dataclasses.field(metadata={"static": True})
    shots: int = dataclasses.field(metadata={"static": True})
    query_shots: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})
    batch_size: int | None = dataclasses.field(metadata={"static": True})
    replace: bool = dataclasses.field(metadata={"static": True})
    balanced: bool = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One episode: support `Batch` `[steps, batch_size, ...]`, query an `Episode`.

        With `batch_size=None` the support is `Repeated` `[ways * shots, ...]`. Labels are int32:
        the class's position among the classes drawn.
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
        if self.batch_size is None:
            batches: Any = repeat(Batch(self._examples(support), labels), self.steps)
        else:
            order = self._minibatch_order(batch_key, self.batch_size)
            batches = Batch(self._examples(support[order]), labels[order])
        if not self.query_shots:
            return Task(batches)
        query = Episode(
            self._examples(index[:, self.shots :].reshape(-1)),
            jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), self.query_shots),
            Batch(self._examples(support), labels),
        )
        return Task(batches, query)

    def _minibatch_order(self, key: Key, batch_size: int) -> jax.Array:
        """Indices `[steps, batch_size]` into the support set, which is sorted by class."""
        draw = functools.partial(minibatch_order, steps=self.steps, replace=self.replace)
        if not self.balanced:
            return draw(key, self.ways * self.shots, batch_size=batch_size)
        keys, each = jax.random.split(key, self.ways), batch_size // self.ways
        within = jax.vmap(lambda key: draw(key, self.shots, batch_size=each))(keys)
        firsts = self.shots * jnp.arange(self.ways)  # of each class
        order = firsts[:, None, None] + within  # [ways, steps, each]
        return order.swapaxes(0, 1).reshape(self.steps, batch_size)

    def _examples(self, index: jax.Array) -> Examples:
        return take(self.classes[0], index)


def take(examples: Examples, index: jax.Array) -> Examples:
    """The examples at `index`; those of uint8 are pictures, scaled to float32 from 0 to 1.

    One number of uint8 an example is no picture, but a label or a count, and stays as it is.
    """

    def of_leaf(leaf):
        leaf = jnp.asarray(leaf)
        is_picture = leaf.dtype == jnp.uint8 and leaf.ndim > 1
        return leaf[index].astype(jnp.float32) / 255 if is_picture else leaf[index]

    return jax.tree.map(of_leaf, examples)


def few_shot(
    classes: Classes | ImageClasses,
    *,
    ways: int,
    shots: int,
    steps: int,
    batch_size: int | None,
    query_shots: int = 0,
    replace: bool = False,
    balanced: bool = False,
) -> FewShot:
    """Episodes of `ways` distinct classes, with distinct examples of each (Nichol et al. 2018).

    Args:
      classes: examples by class; they are moved to the device. Arrays of uint8 with more than one
        axis are pictures: an episode has them as float32 from 0 to 1. All others stay as they are.
      ways: classes in an episode, N.
      shots: support examples of each class, K. The paper trains with more than it evaluates with.
      steps, batch_size: the inner loop's mini-batches of the support set, as in `minibatches`. None
        is the whole support set in every step, without a copy for each.
      query_shots: query examples of each class.
      replace: draw each mini-batch independently.
      balanced: each mini-batch has `batch_size / ways` examples of every class; each class is
        shuffled and cycled through separately. The paper trains without this, but its 1-shot
        evaluation has such mini-batches, and batch norm normalises over each of them.

    Raises:
      TypeError: for sizes that are not integers, or examples that are not arrays of numbers.
      ValueError: for sizes below 1, more classes or examples than there are, classes outside the
        arrays, balanced mini-batches whose size is not a multiple of `ways`, and with `replace` for
        mini-batches larger than the support set.
    """
    ways, shots, steps = check_integers(ways=ways, shots=shots, steps=steps)
    (query_shots,) = check_integers(0, query_shots=query_shots)
    (size,) = check_integers(batch_size=ways * shots if batch_size is None else batch_size)
    batch_size = None if batch_size is None else size
    _check_classes(classes)
    counts = np.asarray(classes.counts, np.int64)
    fewest = int(np.min(counts, initial=2**31 - 1))
    problem = None
    if ways > len(counts):
        problem = f"ways={ways}, but there are only {len(counts)} classes."
    elif shots + query_shots > fewest:
        problem = (
            f"shots={shots} and query_shots={query_shots} need {shots + query_shots} examples of "
            f"each class, but class {int(np.argmin(counts))} has {fewest}."
        )
    elif balanced and size % ways:
        problem = (
            f"balanced mini-batches of {size} cannot contain {ways} classes equally often: "
            "make batch_size a multiple of ways."
        )
    elif replace and size > ways * shots:
        problem = (
            f"with replace, a batch of {size} is drawn from {ways * shots} support examples: "
            "lower batch_size."
        )
    if problem:
        raise ValueError(problem)
    classes = jax.tree.map(jnp.asarray, classes)
    return FewShot(classes, ways, shots, query_shots, steps, batch_size, replace, balanced)


def _check_classes(classes: Any) -> None:
    """Raises unless these are arrays of numbers, with starts and counts of classes inside them."""
    is_classes = isinstance(classes, Classes | ImageClasses)
    given: Any = classes if is_classes else (classes, None, None)
    examples, *bounds = given
    kinds = [str(getattr(x, "dtype", f"Python's {type(x).__name__}")) for x in bounds]
    dtypes = [getattr(leaf, "dtype", float) for leaf in jax.tree.leaves(examples)]
    odd = [str(dtype) for dtype in dtypes if not _is_number(dtype)]
    if odd or not all("int" in kind[:4] for kind in kinds):
        raise TypeError(
            "classes are Classes or ImageClasses: examples, a pytree of arrays of numbers, and "
            f"arrays of integers for starts and counts; got {type(classes).__name__} of "
            f"{', '.join(odd or kinds)}."
        )
    number = check_leading_axis(examples, "examples", "the classes' examples")
    starts, counts = (array.shape for array in bounds)
    problem = None
    if len(starts) != 1 or starts != counts:
        problem = f"starts and counts are one for each class, got shapes {starts} and {counts}."
    elif (
        np.min(classes.starts, initial=0) < 0
        or np.max(np.asarray(classes.starts, np.int64) + classes.counts, initial=0) > number
    ):
        problem = f"the classes' starts and counts point outside the {number} examples."
    if problem:
        raise ValueError(problem)


def _is_number(dtype: Any) -> bool:
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def draw_distinct(key: Key, size: int | jax.Array, number: int) -> jax.Array:
    """Draws `number` distinct integers below `size` (which may be traced), in uniform order.

    These are the first `number` swaps of a Fisher-Yates shuffle of 0 ... size - 1, without the
    array: a place that no swap has touched contains its own index, and the others are found among
    the earlier swaps. So the cost is O(number²) whatever the size.

    Raises:
      ValueError: for more integers than there are, if the size is known.
    """
    if isinstance(size, int | np.integer) and number > size:
        raise ValueError(f"number is at most size, got {number} distinct integers below {size}.")
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
    apply: Apply, params: Params, support: Examples, query: Examples, *, transductive: bool
) -> jax.Array:
    """Logits `[queries, ways]`, with the queries normalised together or one by one.

    Transductive: all queries form one batch, without the support set, so batch norm normalises them
    together. Otherwise each query is in a batch with the whole support set (Nichol et al. 2018,
    section 6.1).

    Args:
      apply: `(params, inputs) -> logits`.
      support, query: inputs, pytrees with leaves `[support, ...]` and `[queries, ...]`.
    """
    if transductive:
        return apply(params, query)
    join = lambda many, one: jnp.concatenate([many, one[None]])
    alone = lambda one: apply(params, jax.tree.map(join, support, one))[-1]
    supports, queries = (np.shape(jax.tree.leaves(tree)[0])[0] for tree in (support, query))
    if not (isinstance(supports, int) and isinstance(queries, int)):  # symbolic, in an export
        return jax.lax.map(alone, query)
    # Vectorised over about 64 examples at a time: more would only take memory.
    at_once = max(1, 64 // (supports + 1))
    return jax.lax.map(alone, query, batch_size=min(at_once, queries))


def accuracy(apply: Apply) -> Callable[[Params, Task], dict[str, jax.Array]]:
    """A score for `evaluate` on `FewShot`: the share of queries classified correctly.

    It has both modes of `query_logits` by name, "transductive" and "non-transductive". Logits that
    are not finite count as wrong.

    Raises:
      ValueError: at tracing, if the task has no query set.
    """

    def score(params: Params, task: Task) -> dict[str, jax.Array]:
        if task.query is None:
            raise ValueError("accuracy needs queries: give few_shot at least query_shots=1.")
        inputs, labels, support = task.query

        def share_correct(transductive: bool) -> jax.Array:
            logits = query_logits(apply, params, support.inputs, inputs, transductive=transductive)
            right = jnp.argmax(logits, -1).astype(labels.dtype) == labels
            return jnp.mean((right & jnp.isfinite(logits).all(-1)).astype(jnp.float32))

        return {"transductive": share_correct(True), "non-transductive": share_correct(False)}

    return score
