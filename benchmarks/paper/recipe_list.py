"""The ways to train that `recipes` tries: rows of the paper, each with a change."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from benchmarks.paper.levers import Distorted, FirstAgain, Halves, rates
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments.few_shot import (
    classifier_left_alone,
    learned_by,
    meta_optimizer,
    meta_rate_schedule,
)
from reptile_jax.deploy.recipes import adam_without_momentum


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a training differs from the paper's."""

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the configuration
    outer: Callable[[FewShotConfig], optax.GradientTransformation] | None = None
    inner: Callable[[FewShotConfig], optax.GradientTransformation] | None = None
    meta_gradient: Callable[..., rj.MetaGradient] = rj.reptile  # of a loss and the inner optimiser
    loss: Callable[[rj.nn.ConvNet], Callable[..., Any]] | None = None  # of training
    averaged: bool = False  # score the mean of the parameters over the second half of training
    tasks: Callable[[rj.tasks.FewShot], rj.TaskDistribution] | None = None  # of training
    # Classifiers start from the classes' mean features, `rj.nn.from_prototypes`; in training too,
    # unless it has a loss of its own.
    mean_scale: float | None = None


def _cosine(config: FewShotConfig) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(config.meta_rate, config.meta_steps))


def _adam(config: FewShotConfig) -> optax.GradientTransformation:
    return optax.adam(meta_rate_schedule(config))


def _classifier_as_initialised(config: FewShotConfig) -> optax.GradientTransformation:
    return classifier_left_alone(meta_optimizer(config))


def _inner_from(first: float) -> Callable[[FewShotConfig], optax.GradientTransformation]:
    """The presets' inner Adam, its rate annealed from `first` to theirs over the whole training.

    The inner optimiser's state counts the steps: training hands it on, evaluation starts from it.
    The presets' rate is 0.001 for 5 ways and 0.0005 for 20.
    """

    def inner(config: FewShotConfig) -> optax.GradientTransformation:
        rate = optax.linear_schedule(
            first, config.inner_rate, config.meta_steps * config.inner_steps
        )
        return optax.chain(adam_without_momentum(1.0), optax.scale_by_schedule(rate))

    return inner


def _inner_decay(share: float) -> Callable[[FewShotConfig], optax.GradientTransformation]:
    """The presets' inner Adam with weight decay: parameters shrink by a `share` at every step.

    The released code's `--weight-decay`, which the paper does not use, is 1 - share. In front of
    batch norm the size of a kernel only divides the rates; without decay it grows.
    """

    def inner(config: FewShotConfig) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(-share)
        return optax.chain(learned_by(config).inner_optimizer, decay)

    return inner


def _classifier_rate(factor: float) -> Callable[[FewShotConfig], optax.GradientTransformation]:
    return lambda config: rates(learned_by(config).inner_optimizer, 1.0, factor)


def _later_steps(first: float, steps: int = 1) -> Callable[..., rj.MetaGradient]:
    """Reptile that counts the updates of the first inner `steps` so many times."""

    def meta_gradient(loss_fn, inner_optimizer):
        adapt = functools.partial(rj.inner_loop, loss_fn, inner_optimizer)

        def compute(params, opt_state, task):
            head = jax.tree.map(lambda leaf: leaf[:steps], task.support)
            tail = jax.tree.map(lambda leaf: leaf[steps:], task.support)
            one = adapt(params, head, opt_state)
            end = adapt(one.params, tail, one.opt_state)
            weigh = lambda start, after, last: first * (start - after) + (after - last)
            delta = jax.tree.map(weigh, params, one.params, end.params)
            return rj.TaskGradient(delta, end.opt_state, jnp.concatenate([one.losses, end.losses]))

        return rj.MetaGradient(inner_optimizer.init, compute)

    return meta_gradient


def _smoothed(share: float) -> Callable[[rj.nn.ConvNet], Callable[..., Any]]:
    """The mean cross-entropy with a share of every label spread over all classes."""

    def loss(model):
        def loss_fn(params, batch):
            labels = optax.smooth_labels(jax.nn.one_hot(batch.targets, model.ways), share)
            return optax.softmax_cross_entropy(model.apply(params, batch.inputs), labels).mean()

        return loss_fn

    return loss


_MOMENTUM = {"meta_momentum": 0.9}
_ZERO = {"classifier": "zero"}
_BALANCED = {"balanced_batches": True}
_PAIRS = {**_ZERO, "inner_rate": 4e-3, "meta_batch": 2}
# For 20 ways: a classifier at zero, inner rate 0.002, a meta-batch of two, balanced mini-batches.
_TWENTY = {**_PAIRS, **_BALANCED, "inner_rate": 2e-3}
# Two images of each class in a mini-batch, which are compared with each other.
_DISTANCES = {**_TWENTY, "inner_batch": 40, "inner_steps": 5, "inner_rate": 1e-3}
RECIPES: dict[str, Recipe] = {
    "the paper": Recipe(),
    "outer step 2": Recipe({"meta_rate": 2.0}),
    "momentum 0.9, outer step 0.1": Recipe({**_MOMENTUM, "meta_rate": 0.1}),
    "momentum 0.9, outer step 0.3": Recipe({**_MOMENTUM, "meta_rate": 0.3}),
    "momentum 0.9, outer step 1": Recipe(_MOMENTUM),
    "Adam outside, 0.001": Recipe({"meta_rate": 1e-3}, outer=_adam),
    "Adam outside, 0.003": Recipe({"meta_rate": 3e-3}, outer=_adam),
    "outer step by a cosine": Recipe(outer=_cosine),
    "outer step kept, iterates averaged": Recipe({"meta_rate_final": 1.0}, averaged=True),
    "inner rate 0.002": Recipe({"inner_rate": 2e-3}),
    "inner rate 0.004": Recipe({"inner_rate": 4e-3}),
    "inner rate 0.008": Recipe({"inner_rate": 8e-3}),
    "inner rate from 0.004": Recipe(inner=_inner_from(4e-3)),
    "ten inner steps": Recipe({"inner_steps": 10}),
    "a meta-batch of one": Recipe({"meta_batch": 1}),
    "a meta-batch of two": Recipe({"meta_batch": 2}),
    "a meta-batch of ten": Recipe({"meta_batch": 10}),
    "inner state carried": Recipe({"inner_opt_state": "carry"}),
    "first inner step left out": Recipe(meta_gradient=_later_steps(0.0)),
    "first inner step doubled": Recipe(meta_gradient=_later_steps(2.0)),
    "classifier as initialised": Recipe(outer=_classifier_as_initialised),
    "classifier at zero": Recipe(_ZERO),
    # What helped, together.
    "inner rate 0.002, momentum 0.9, outer step 0.3": Recipe(
        {"inner_rate": 2e-3, **_MOMENTUM, "meta_rate": 0.3}
    ),
    "inner rate 0.004, momentum 0.9, outer step 0.1": Recipe(
        {"inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.1}
    ),
    "inner rate 0.004, momentum 0.9, outer step 0.3": Recipe(
        {"inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.3}
    ),
    "inner rate from 0.004, momentum 0.9, outer step 0.3": Recipe(
        {**_MOMENTUM, "meta_rate": 0.3}, inner=_inner_from(4e-3)
    ),
    "inner rate 0.004, a meta-batch of two": Recipe({"inner_rate": 4e-3, "meta_batch": 2}),
    "classifier at zero, inner rate 0.002": Recipe({**_ZERO, "inner_rate": 2e-3}),
    "classifier at zero, inner rate 0.004": Recipe({**_ZERO, "inner_rate": 4e-3}),
    "classifier at zero, inner rate 0.008": Recipe({**_ZERO, "inner_rate": 8e-3}),
    "classifier at zero, inner rate 0.004, momentum 0.9, outer step 0.1": Recipe(
        {**_ZERO, "inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.1}
    ),
    "classifier at zero, inner rate 0.004, ten inner steps": Recipe(
        {**_ZERO, "inner_rate": 4e-3, "inner_steps": 10}
    ),
    "classifier at zero, inner rate 0.004, a meta-batch of two": Recipe(_PAIRS),
    "balanced batches": Recipe(_BALANCED),
    # Pairs: a classifier at zero, inner rate 0.004, a meta-batch of two.
    "pairs, balanced batches": Recipe({**_PAIRS, **_BALANCED}),
    "pairs, balanced batches, inner rate 0.002": Recipe(
        {**_PAIRS, **_BALANCED, "inner_rate": 2e-3}
    ),
    "pairs, balanced batches, inner state carried": Recipe(
        {**_PAIRS, **_BALANCED, "inner_opt_state": "carry"}
    ),
    "pairs, balanced batches, iterates averaged": Recipe(
        {**_PAIRS, **_BALANCED, "meta_rate_final": 1.0}, averaged=True
    ),
    "pairs, balanced batches, weight decay 0.0001": Recipe(
        {**_PAIRS, **_BALANCED}, inner=_inner_decay(1e-4)
    ),
    "pairs, balanced batches, weight decay 0.0005": Recipe(
        {**_PAIRS, **_BALANCED}, inner=_inner_decay(5e-4)
    ),
    "pairs, trained at ten ways": Recipe({**_PAIRS, "ways": 10}),
    "pairs, trained at ten ways, balanced batches": Recipe({**_PAIRS, **_BALANCED, "ways": 10}),
    "classifier at zero, inner rate from 0.004": Recipe(_ZERO, inner=_inner_from(4e-3)),
    "classifier at zero, inner rate from 0.004, a meta-batch of two": Recipe(
        {**_ZERO, "meta_batch": 2}, inner=_inner_from(4e-3)
    ),
    # For 20 ways; each differs from "pairs, balanced batches, inner rate 0.002" by what it names.
    "twenty, classifier from class means": Recipe(_TWENTY, mean_scale=0.1),
    "twenty, distances in pairs": Recipe(_DISTANCES, loss=rj.nn.prototype_loss, mean_scale=0.1),
    "twenty, distances in pairs, trained at 60 ways": Recipe(
        {**_DISTANCES, "ways": 60, "inner_batch": 120}, loss=rj.nn.prototype_loss, mean_scale=0.1
    ),
    "twenty, labels smoothed by 0.1": Recipe(_TWENTY, loss=_smoothed(0.1)),
    "twenty, classifier's rate times 5": Recipe(_TWENTY, inner=_classifier_rate(5.0)),
    "twenty, classifier's rate times 0.3": Recipe(_TWENTY, inner=_classifier_rate(0.3)),
    "twenty, trained at 40 ways": Recipe({**_TWENTY, "ways": 40, "inner_batch": 40}),
    "twenty, trained at 60 ways": Recipe({**_TWENTY, "ways": 60, "inner_batch": 60}),
    "twenty, mini-batches of ten classes": Recipe(_TWENTY, tasks=Halves),
    "twenty, mirrored classes": Recipe(_TWENTY, tasks=functools.partial(Distorted, mirrored=True)),
    "twenty, distorted classes": Recipe(_TWENTY, tasks=functools.partial(Distorted, classes=0.15)),
    "twenty, distorted images": Recipe(_TWENTY, tasks=functools.partial(Distorted, images=0.05)),
    # As at evaluation: five steps on one image of each class. Then five others.
    "twenty, one image first": Recipe(_TWENTY, tasks=functools.partial(FirstAgain, times=5)),
    "twenty, one image first, others' steps counted": Recipe(
        _TWENTY,
        tasks=functools.partial(FirstAgain, times=5),
        meta_gradient=_later_steps(0.0, 5),
    ),
    "twenty, three inner steps": Recipe({**_TWENTY, "inner_steps": 3}),
    "twenty, five inner steps": Recipe({**_TWENTY, "inner_steps": 5}),
    "twenty, twenty inner steps": Recipe({**_TWENTY, "inner_steps": 20}),
    "twenty, iterates averaged": Recipe({**_TWENTY, "meta_rate_final": 1.0}, averaged=True),
}
