"""From the configuration of a run and what it learned to an `AdaptableModel`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reptile_jax import nn
from reptile_jax._types import Batch, Params
from reptile_jax.deploy.adaptable import AdaptableModel


# Programs are compiled for what these functions return: the same for the same arguments.
@functools.cache
def network(size: int, ways: int, classifier: str) -> nn.ConvNet:
    """The paper's network for the size of the images; a classifier not "learned" is at zero."""
    model = (nn.omniglot_net if size < 64 else nn.mini_imagenet_net)(ways)
    if classifier != "learned":
        model = model.clone(classifier_init=jax.nn.initializers.zeros)
    return model


@functools.cache
def prototypes(size: int, classifier: str) -> Callable[[Params, Batch], Params] | None:
    """Where a task starts, given its support set: for the classifier "prototypes" alone."""
    return nn.from_prototypes(network(size, 1, classifier)) if classifier == "prototypes" else None


def adam_without_momentum(rate: Any) -> optax.GradientTransformation:
    """Adam with β1 = 0, the paper's inner optimiser, without its useless first moment."""
    return optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.scale(-rate),
    )


@functools.cache
def inner_adam(rate: float) -> optax.GradientTransformation:
    """`adam_without_momentum`, the same for the same rate."""
    return adam_without_momentum(rate)


@functools.cache
def inner_sgd(rate: float) -> optax.GradientTransformation:
    """The inner optimiser of the sine waves."""
    return optax.sgd(rate)


def from_config(config: Mapping[str, Any], **facts: Any) -> AdaptableModel:
    """The model of a run, with the shapes of what it learned in the place of that.

    Of images, it is for the classes of the run's held-out tasks.

    Args:
      config: of a run on images or sine waves, as its config.json has it.
      facts: what else its card has.
    """
    model = _curve(config) if config["experiment"] == "sinusoid" else _classifier(config)
    assert model.init is not None
    params = jax.eval_shape(model.init, jax.random.key(0))
    kept = config.get("inner_opt_state", "reset") != "reset"
    state = jax.eval_shape(model.inner_optimizer.init, params) if kept else None
    card = {**facts, "config": dict(config)}
    return dataclasses.replace(model, params=params, inner_opt_state=state, card=card)


def _classifier(config: Mapping[str, Any]) -> AdaptableModel:
    size, classifier = config["size"], config.get("classifier", "learned")
    shape = (size, size, 1 if config["color"] == "grey" else 3)
    of = lambda ways: network(size, ways, classifier)
    ways = config.get("eval_ways") or config["ways"]
    model = of(ways)
    return AdaptableModel(
        apply=model.apply,
        params=None,
        inner_optimizer=inner_adam(config["inner_rate"]),
        input_shape=shape,
        ways=ways,
        inner_steps=config["eval_steps"],
        batch_size=config["eval_batch"],
        balanced=config.get("balanced_batches", False),
        training_batch=config["inner_batch"],
        seed=config["seed"],
        init=lambda key: jax.jit(model.init)(key, jnp.zeros((1, *shape))),
        apply_for=(lambda ways: of(ways).apply) if classifier != "learned" else None,
        prototypes=prototypes(size, classifier),
    )


def _curve(config: Mapping[str, Any]) -> AdaptableModel:
    model = nn.MLP()
    return AdaptableModel(
        apply=model.apply,
        params=None,
        inner_optimizer=inner_sgd(config["inner_rate"]),
        input_shape=(1,),
        ways=None,
        inner_steps=config["eval_steps"],
        init=lambda key: jax.jit(model.init)(key, jnp.zeros((1, 1))),
    )
