"""What the tests of deployed models share: models small enough to compile in a moment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj


@pytest.fixture(autouse=True, scope="module")
def promotion_of_a_person():
    """Optax's own arithmetic does not pass the tests' strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def classifier(ways: int) -> rj.nn.ConvNet:
    return rj.nn.ConvNet(ways, features=4, blocks=1, classifier_init=jax.nn.initializers.zeros)


@pytest.fixture(scope="package")
def model() -> rj.deploy.AdaptableModel:
    """A classifier of three kinds of 4x4 images, which starts at zero."""
    net = classifier(3)
    params = net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    adam = optax.scale_by_rms(decay=0.999, bias_correction=True)
    adam = optax.chain(adam, optax.scale(-0.01))
    return rj.deploy.AdaptableModel(
        apply=net.apply,
        params=params,
        inner_optimizer=adam,
        input_shape=(4, 4, 1),
        ways=3,
        inner_steps=6,
        inner_opt_state=jax.tree.map(lambda leaf: leaf + 1, adam.init(params)),
        batch_size=4,
        balanced=True,
        training_batch=5,
        init=lambda key: net.init(key, jnp.zeros((1, 4, 4, 1))),
        apply_for=lambda ways: classifier(ways).apply,
        card={"name": "small"},
    )


@pytest.fixture(scope="package")
def from_prototypes(model) -> rj.deploy.AdaptableModel:
    """The same, whose classifier starts from prototypes."""
    return dataclasses.replace(model, prototypes=rj.nn.from_prototypes(classifier(3)))


@pytest.fixture(scope="package")
def curve() -> rj.deploy.AdaptableModel:
    """A curve through points, from plain parameters."""
    params = {"slope": jnp.ones((1, 1)), "height": jnp.zeros((1, 1))}
    return rj.deploy.AdaptableModel(
        apply=lambda p, x: x @ p["slope"] + p["height"],
        params=params,
        inner_optimizer=optax.sgd(0.1),
        input_shape=(1,),
        ways=None,
        inner_steps=50,
    )


@pytest.fixture(scope="package")
def task():
    """A support set of three classes, of one to three images, in no order; and five queries."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (11, 4, 4, 1)).astype(np.uint8)
    return images[:6], np.array([2, 0, 1, 0, 2, 0]), images[6:]
