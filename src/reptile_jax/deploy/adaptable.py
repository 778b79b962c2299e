"""A trained initialisation, and all that it takes to adapt it to a task of its user."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax._state_checks import check_usable
from reptile_jax._types import Adapted, Apply, Batch, Key, Optimizer, OptState, Params
from reptile_jax.deploy import adaptation
from reptile_jax.deploy.adaptation import resized


@dataclasses.dataclass(frozen=True)
class AdaptableModel:
    """A trained initialisation that adapts to a task: to classes of images, or to a curve's points.

    A task is a support set, which is adapted to, and queries, which are answered. Images are uint8,
    or floating-point from 0 to 1. Each method compiles one program for each shape of a task; models
    that differ in their parameters alone share it.
    """

    apply: Apply  # (params, inputs [batch, ...]) -> logits, or the values of a curve
    params: Params  # θ
    inner_optimizer: Optimizer
    input_shape: tuple[int, ...]  # of one example: (height, width, channels) of an image
    ways: int | None  # classes that it tells apart; None for a curve
    inner_steps: int
    inner_opt_state: OptState = None  # where the inner optimiser starts; None is its first state
    # Examples of an inner step. Balanced mini-batches come as near to it as whole examples of each
    # class do. None is the whole support set.
    batch_size: int | None = None
    balanced: bool = False  # every mini-batch shows each class as often
    # The size of training's mini-batches: losses are sums divided by it. None is the mean.
    training_batch: int | None = None
    seed: int = 0  # of the mini-batches
    init: Callable[[Key], Params] | None = None  # parameters before training
    # For a classifier that is not meta-learned: `apply` for any number of classes.
    apply_for: Callable[[int], Apply] | None = None
    # For a model trained by `nn.prototype_loss`: where a task starts, given its support set, as
    # `nn.from_prototypes` has it. Losses are then sums divided by the ways, not `training_batch`.
    prototypes: Callable[[Params, Batch], Params] | None = None
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # where it is from

    def __post_init__(self):
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps is at least 1, got {self.inner_steps}.")
        if self.balanced and self.batch_size is None:
            raise ValueError("balanced mini-batches have a size: give batch_size.")

    def predict(
        self, support: Any, targets: Any, query: Any, *, transductive: bool = False
    ) -> jax.Array:
        """Adapts to a support set and answers queries, in one compiled program.

        Args:
          support: inputs `[support, *input_shape]`, in any order.
          targets: labels `[support]`, integers from 0 to ways - 1, of which each occurs; the values
            `[support, 1]` of a curve.
          query: inputs `[queries, *input_shape]`.
          transductive: normalise the queries together, without the support set. It helps where
            they are many and spread evenly over the classes. Otherwise each query is normalised
            with the support set, and its answer does not depend on the others.

        Returns:
          Probabilities `[queries, ways]`; for a curve its values `[queries, 1]`.

        Raises:
          ValueError: for shapes, labels or images that do not fit, and donated parameters.
        """
        given = self._checked(support, targets, query)
        return adaptation.predict(self._how(), transductive, *self._start(), *given)

    def trajectory(
        self, support: Any, targets: Any, query: Any, *, transductive: bool = False
    ) -> adaptation.Trajectory:
        """The same with the answers after every inner step; arguments are those of `predict`."""
        given = self._checked(support, targets, query)
        return adaptation.trajectory(self._how(), transductive, *self._start(), *given)

    def adapt(self, support: Any, targets: Any) -> Adapted:
        """Only adapts: `answer` then answers any number of queries without adapting again."""
        given = self._checked(support, targets, None)[:2]
        return adaptation.adapt(self._how(), *self._start(), *given)

    def answer(
        self, params: Params, support: Any, query: Any, *, transductive: bool = False
    ) -> jax.Array:
        """What adapted parameters answer, as `predict` does: `support` normalises the queries."""
        check_usable(params)
        return adaptation.answer(
            self._how(), transductive, params, adaptation.scaled(support), adaptation.scaled(query)
        )

    def mini_batches(self, targets: Any) -> jax.Array:
        """Indices `[inner steps, batch]` into a support set: what each inner step shows."""
        return adaptation.order(self._how(), jnp.asarray(targets))

    def program(self, *, transductive: bool = False) -> Callable[..., jax.Array]:
        """`predict` as a pure function `(support, targets, query)`, without checks.

        Where a class has no example, or labels are out of range, its answers are NaN.
        """
        how, start = self._how(), self._start()

        def adapt_and_answer(support, targets, query):
            answers = adaptation.predict(how, transductive, *start, support, targets, query)
            if how.ways is None:
                return answers
            counts = adaptation.counts(how.ways, targets)
            fits = (counts > 0).all() & (counts.sum() == targets.shape[0])
            return jnp.where(fits, answers, jnp.nan)

        return adapt_and_answer

    def for_ways(self, ways: int) -> "AdaptableModel":
        """The same model for another number of classes: any unless its classifier is meta-learned.

        Raises:
          ValueError: for more classes than a meta-learned classifier has, for a curve, and for
            prototypes without `apply_for`.
        """
        if ways == self.ways:
            return self
        if self.ways is not None and ways < 1:
            raise ValueError(f"ways is at least 1, got {ways}.")
        if self.apply_for is not None:
            learned = resized(ways, self._start())
            return dataclasses.replace(
                self,
                apply=self.apply_for(ways),
                params=learned[0],
                inner_opt_state=learned[1],
                ways=ways,
            )
        # Classes without examples have no prototypes.
        if self.ways is None or ways > self.ways or self.prototypes is not None:
            raise ValueError(
                f"this model tells {self.ways or 'no'} classes apart, not {ways}: give that many "
                "or fewer, or a model with apply_for, whose classifier is not meta-learned."
            )
        return dataclasses.replace(self, ways=ways)

    def untrained(self, key: Key) -> "AdaptableModel":
        """The same model before training, to compare with.

        Raises:
          ValueError: for a model without `init`.
        """
        if self.init is None:
            raise ValueError("this model has no init, which draws parameters.")
        params = self.init(key)
        if self.apply_for is not None and self.ways is not None:
            params = resized(self.ways, params)
        start = self.inner_optimizer.init(params)
        return dataclasses.replace(self, params=params, inner_opt_state=start)

    def _start(self) -> tuple[Params, OptState]:
        """Where an adaptation starts; raises a ValueError if its memory has been used up."""
        check_usable({"params": self.params, "inner_opt_state": self.inner_opt_state})
        return self.params, self.inner_opt_state

    def _how(self) -> adaptation.How:
        return adaptation.How(
            self.apply,
            self.inner_optimizer,
            self.ways,
            self.inner_steps,
            self.batch_size,
            self.balanced,
            self.training_batch,
            self.seed,
            self.prototypes,
        )

    def _checked(self, support: Any, targets: Any, query: Any) -> tuple[jax.Array, ...]:
        """The task as arrays, images from 0 to 1; raises a ValueError for one that does not fit."""
        query = np.zeros((1, *self.input_shape), np.float32) if query is None else query
        (number, *shape), (queries, *other) = (np.shape(x) or (0,) for x in (support, query))
        expected = (number,) if self.ways is not None else (number, 1)
        labels, problem = np.asarray(targets), None
        if not shape == other == [*self.input_shape] or not number or not queries:
            problem = (
                f"support and query are one or more inputs of shape {self.input_shape} each, got "
                f"shapes {np.shape(support)} and {np.shape(query)}"
            )
        elif labels.shape != expected:
            problem = f"targets are one for each of {number} inputs, got shape {labels.shape}"
        elif self.ways is not None and (
            labels.dtype.kind not in "iu" or sorted(set(labels.tolist())) != [*range(self.ways)]
        ):
            problem = (
                f"labels are the integers from 0 to {self.ways - 1}, each at least once, got "
                f"{sorted(set(labels.tolist()))}: for another number of classes use for_ways"
            )
        if problem:
            raise ValueError(f"{problem}.")
        kind = jnp.float32 if self.ways is None else jnp.int32
        return adaptation.scaled(support), jnp.asarray(labels, kind), adaptation.scaled(query)
