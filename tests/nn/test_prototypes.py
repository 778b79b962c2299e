"""Prototypes, against NumPy in float64: the loss of two halves, and the classifier of a task."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax import nn

NET = nn.ConvNet(3, features=4, blocks=1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(NET.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def images(number):
    return jax.random.uniform(jax.random.key(1), (number, 4, 4, 1))


def features_of(params, inputs):
    """What the classifier is given, as logits of an identity in its place."""
    identity = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    shown = {"params": {**params["params"], "Dense_0": identity}}
    return np.asarray(jax.jit(NET.clone(ways=16).apply)(shown, inputs), np.float64)


def squared_distances(queries, means):
    return ((queries[:, None] - means) ** 2).sum(-1)


def test_features_are_what_the_classifier_is_given(params):
    found = jax.jit(functools.partial(NET.apply, classify=False))(params, images(5))
    np.testing.assert_allclose(found, features_of(params, images(5)), atol=1e-5)
    assert found.shape == (5, 16)


@pytest.mark.parametrize("each", [1, 2])
def test_halves_are_classified_by_distances_to_each_others_means(params, each):
    labels = np.array([2, 0, 1, 1, 0, 2] * each)
    batch = rj.Batch(images(6 * each), jnp.asarray(labels))
    found = jax.jit(nn.prototype_loss(NET, 0.3))(params, batch)
    features, losses = features_of(params, batch.inputs), []
    of_class = [features[labels == way] for way in range(3)]
    halves = [[own[:each] for own in of_class], [own[each:] for own in of_class]]
    for given, queries in (halves, halves[::-1]):
        means = np.stack([own.mean(0) for own in given])
        for way, own in enumerate(queries):
            weights = np.exp(-0.3 * squared_distances(own, means))
            losses += [*-np.log(weights[:, way] / weights.sum(-1))]
    assert len(losses) == 6 * each
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-4)


def test_the_linear_classifier_has_no_part_in_the_loss(params):
    batch = rj.Batch(images(6), jnp.arange(6) % 3)
    slope = jax.jit(jax.grad(nn.prototype_loss(NET)))(params, batch)["params"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope["Dense_0"]))
    assert slope["Conv_0"]["kernel"].any()


def test_halves_of_other_sizes_are_refused(params):
    with pytest.raises(ValueError, match="of 3 classes: give a multiple of 6 images, got 9"):
        nn.prototype_loss(NET)(params, rj.Batch(images(9), jnp.arange(9) % 3))


def test_a_task_starts_from_distances_to_its_means(params):
    labels = np.array([1, 0, 0, 2, 1, 0, 3])  # of four classes; the given network is for three
    wide = {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(4)}
    four = {"params": {**params["params"], "Dense_0": wide}}
    start = jax.jit(nn.from_prototypes(NET, 0.3))(four, rj.Batch(images(7), jnp.asarray(labels)))
    features = features_of(params, images(7))
    means = np.stack([features[labels == way].mean(0) for way in range(4)])
    expected = -0.3 * squared_distances(features, means)
    found = jax.jit(NET.clone(ways=4).apply)(start, images(7))
    np.testing.assert_allclose(
        found, expected - expected.mean(-1, keepdims=True), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(start["params"]["Dense_0"]["kernel"].mean(-1), 0, atol=1e-6)
    rest = lambda tree: {**tree["params"], "Dense_0": None}
    chex.assert_trees_all_equal(rest(start), rest(four))


def test_training_and_the_start_have_one_scale(params):
    batch = rj.Batch(images(6), jnp.arange(6) % 3)
    both = nn.prototype_loss, nn.from_prototypes
    of = lambda *scale: jax.jit(lambda *given: [made(NET, *scale)(*given) for made in both])
    chex.assert_trees_all_equal(of()(params, batch), of(0.1)(params, batch))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_start_has_the_precision_of_the_parameters(params, dtype):
    given = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    with jax.numpy_dtype_promotion("standard"):
        batch = rj.Batch(images(3), jnp.arange(3))
        start = jax.eval_shape(nn.from_prototypes(NET), given, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, given)
