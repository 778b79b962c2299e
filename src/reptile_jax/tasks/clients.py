"""Clients of federated learning: each is a task with data of its own, of unequal size.

FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1) is batched Reptile on such tasks, each
weighted by its number of examples, with SGD inside and a meta rate of 1 (Jiang et al. 2019,
arXiv:1909.12488): with weights n_k that sum to n,

    θ + Σ_k n_k / n · (φ_k − θ) = Σ_k n_k / n · φ_k.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._types import Batch, Examples, Key, Task
from reptile_jax._values import check_integers, check_leading_axis, kind
from reptile_jax.tasks.few_shot import Classes, take
from reptile_jax.tasks.minibatches import shuffles
from reptile_jax.tasks.padding import Masked
from reptile_jax.tasks.repeated import repeat


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clients:
    """p(τ) over a fixed set of clients. Make one with `clients`."""

    data: Classes  # by client
    query: Classes | None
    weighted: bool = dataclasses.field(metadata={"static": True})
    batch_size: int | None = dataclasses.field(metadata={"static": True})
    epochs: int | None = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})  # of the client with the most
    passes: int = dataclasses.field(metadata={"static": True})  # of the client with the most
    most: tuple[int, int] = dataclasses.field(metadata={"static": True})  # examples, queries

    def sample(self, key: Key) -> Task:
        """The task of a client, drawn uniformly: see `task`."""
        client_key, order_key = jax.random.split(key)
        number = self.data.starts.shape[0]
        return self.task(jax.random.randint(client_key, (), 0, number), order_key)

    def task(self, client: int | jax.Array, key: Key) -> Task:
        """The task of one client, by its place; the key shuffles its examples.

        The support set is `Masked` `[steps, batch_size, ...]`. A client that takes fewer steps has
        empty ones at the front. With `batch_size=None` it is `Repeated`, of `Masked` examples
        `[most, ...]`. The query set, if there is one, is `Masked` `[most queries, ...]`.
        """
        count = jnp.asarray(self.data.counts)[client]
        if self.batch_size is None:
            support: Any = repeat(_padded(self.data, client, self.most[0]), self.steps)
        else:
            support = self._minibatches(client, count, key, self.batch_size)
        query = None if self.query is None else _padded(self.query, client, self.most[1])
        weight = count.astype(jnp.result_type(float)) if self.weighted else None
        return Task(support, query, weight)

    def all(self, key: Key) -> Task:
        """The tasks of all clients in order, each once: a meta-batch `[clients, ...]`."""
        number = self.data.starts.shape[0]
        return jax.vmap(self.task)(jnp.arange(number), jax.random.split(key, number))

    def _minibatches(self, client, count: jax.Array, key: Key, size: int) -> Masked:
        """Passes over the shuffled examples; the last mini-batch of each has what is left."""
        words = jax.random.bits(key, (self.passes, self.most[0]), jnp.uint32)
        is_real = jnp.arange(self.most[0])[None] < count
        order = shuffles(jnp.where(is_real, words, jnp.uint32(2**32 - 1)))  # real ones come first
        in_pass = -(-count // size)
        taken = self.steps if self.epochs is None else self.epochs * in_pass
        step = jnp.arange(self.steps)[:, None] - (self.steps - taken)
        place = step % in_pass * size + jnp.arange(size)[None]  # in its pass
        index = order[jnp.maximum(step // in_pass, 0), jnp.minimum(place, count - 1)]
        start = jnp.asarray(self.data.starts)[client]
        return Masked(take(self.data.examples, start + index), (step >= 0) & (place < count))


def clients(
    data: Mapping[Any, Examples] | Sequence[Examples],
    *,
    batch_size: int | None,
    epochs: int | None = None,
    steps: int | None = None,
    query: Mapping[Any, Examples] | Sequence[Examples] | None = None,
    weighted: bool = True,
    labels: int | None = None,
) -> Clients:
    """A fixed set of clients, each with examples of its own, as many as it has.

    A loss made by `rj.tasks.masked_mean` reads the mini-batches, which are `Masked`.

    Args:
      data: each client's examples, by name or in a list: pytrees of arrays `[examples, ...]` that
        differ in their number alone. They are moved to the device, without padding. Arrays of uint8
        with more than one axis are pictures: a task has them as float32 from 0 to 1.
      batch_size: examples in a mini-batch. As in FedAvg, every pass over a client's data is
        shuffled anew, and its last mini-batch may be smaller. None is all of them in every step.
      epochs: a client's passes over its data: those with more data take more steps; or
      steps: inner steps, the same number for every client. Give one of the two. A task then costs
        as many shuffles of the largest client as the smallest needs passes: for clients of very
        unequal sizes `epochs` is faster.
      query: the same clients' examples to score on, in the same order or by the same names.
      weighted: a task's weight is its number of examples in `data`, as in FedAvg; otherwise all
        clients count alike.
      labels: the classes, if examples are a `Batch` whose targets are integers below this.

    Raises:
      TypeError: for sizes that are not integers, and what is neither a dict nor a list.
      ValueError: for sizes below 1, for both or neither of `epochs` and `steps`, for other clients
        in `query`, and for no clients; and, with the client's name, for no examples, arrays that
        disagree on their number, examples unlike those of the first client, and targets outside
        the `labels`.
    """
    if (epochs is None) == (steps is None):
        raise ValueError(f"give epochs or steps, one of them, got epochs={epochs}, steps={steps}.")
    sizes = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "labels": labels}
    check_integers(**{name: size for name, size in sizes.items() if size is not None})
    by_client = _named(data, "data")
    grouped, grouped_query = _grouped(by_client, "data", labels), None
    if query is not None:
        queries = _named(query, "query")
        if queries.keys() != by_client.keys():
            odd = next(iter(queries.keys() ^ by_client.keys()))
            raise ValueError(f"data and query are of the same clients, but one lacks {odd!r}.")
        grouped_query = _grouped({name: queries[name] for name in by_client}, "query", labels)
    fewest, most = int(grouped.counts.min()), int(grouped.counts.max())
    in_pass = lambda count: 1 if batch_size is None else -(-count // int(batch_size))
    if steps is not None:
        total, passes = int(steps), -(-int(steps) // in_pass(fewest))
    else:
        passes = int(epochs or 0)
        total = passes * in_pass(most)
    return Clients(
        data=jax.tree.map(jnp.asarray, grouped),
        query=jax.tree.map(jnp.asarray, grouped_query),
        weighted=bool(weighted),
        batch_size=None if batch_size is None else int(batch_size),
        epochs=None if epochs is None else int(epochs),
        steps=total,
        passes=passes,
        most=(most, 0 if grouped_query is None else int(grouped_query.counts.max())),
    )


def _named(data: Any, what: str) -> dict[Any, Examples]:
    """The clients' examples by name, or by their place in a list."""
    if not isinstance(data, Mapping | Sequence):
        raise TypeError(f"{what} is a dict or a list of clients' examples, got {data!r:.80}.")
    named = dict(data) if isinstance(data, Mapping) else dict(enumerate(data))
    if not named:
        raise ValueError(f"{what} has the examples of at least one client, got none.")
    return named


def _grouped(by_client: Mapping[Any, Examples], what: str, labels: int | None) -> Classes:
    """All clients' examples one after another, on the host."""
    first, kind_of_first, counts = None, None, []
    for name, examples in by_client.items():
        said = f"the {what} of client {name!r}"
        counts.append(check_leading_axis(examples, "examples", said))
        each = kind(examples, 1)
        if not counts[1:]:
            first, kind_of_first = name, each
        targets = np.asarray(examples.targets) if isinstance(examples, Batch) else np.array(None)
        problem = None
        if each != kind_of_first:
            problem = (
                f"is {each!s} an example, that of client {first!r} {kind_of_first!s}: make them "
                "alike."
            )
        elif not all(map(_is_number, each.dtypes)):
            problem = f"is {each!s} an example: give arrays of numbers."
        elif labels is not None and np.any(odd := ~np.isin(targets, np.arange(labels))):
            problem = f"has the target {targets[odd][0]}: labels are 0 to {labels - 1}."
        if problem:
            raise ValueError(f"{said} {problem}")
    join = lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])
    examples = jax.tree.map(join, *by_client.values())
    ends = np.cumsum(counts)
    return Classes(examples, (ends - counts).astype(np.int32), np.array(counts, np.int32))


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _padded(of: Classes, client: int | jax.Array, most: int) -> Masked:
    """One client's examples, padded with its last."""
    start, count = jnp.asarray(of.starts)[client], jnp.asarray(of.counts)[client]
    place = jnp.arange(most)
    return Masked(take(of.examples, start + jnp.minimum(place, count - 1)), place < count)
