"""Adapting a trained model: the parts and the whole agree, and what does not fit is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.deploy import adaptation
from tests.deploy.conftest import classifier


@pytest.mark.parametrize("transductive", [False, True])
def test_predict_is_the_inner_loop_and_the_query_logits(model, task, transductive):
    support, labels, query = task
    order = model.mini_batches(labels)
    images, queries = jnp.float32(support) / 255, jnp.float32(query) / 255
    loss_fn = rj.nn.cross_entropy(model.apply, 5)  # 3 images a step, 5 in training
    batches = rj.Batch(images[order], jnp.asarray(labels)[order])
    adapted = rj.inner_loop(
        loss_fn, model.inner_optimizer, model.params, batches, model.inner_opt_state
    )
    logits = rj.tasks.query_logits(
        model.apply, adapted.params, images, queries, transductive=transductive
    )
    predicted = model.predict(*task, transductive=transductive)
    np.testing.assert_allclose(predicted, jax.nn.softmax(logits), atol=1e-5)
    assert predicted.shape == (5, 3)

    path = model.trajectory(*task, transductive=transductive)
    np.testing.assert_allclose(path.predictions[-1], predicted, atol=1e-5)
    np.testing.assert_allclose(path.predictions[0], 1 / 3, atol=1e-6)  # the classifier is at zero
    np.testing.assert_allclose(path.losses, adapted.losses, rtol=1e-4)
    assert path.predictions.shape == (7, 5, 3)

    once = model.adapt(support, labels)
    answered = model.answer(once.params, support, query, transductive=transductive)
    np.testing.assert_allclose(answered, predicted, atol=1e-5)


def test_prototypes_of_the_support_set_are_the_start(from_prototypes, task):
    support, labels, query = task
    model, images = from_prototypes, jnp.float32(support) / 255
    start = jax.jit(model.prototypes)(model.params, rj.Batch(images, jnp.asarray(labels)))
    assert start["params"]["Dense_0"]["kernel"].any()
    path = model.trajectory(*task)
    np.testing.assert_allclose(path.predictions[0], model.answer(start, support, query), atol=1e-6)
    assert np.abs(path.predictions[0] - 1 / 3).max() > 0.1

    order = model.mini_batches(labels)  # 3 images of 3 classes, so that the loss is the mean
    batches = rj.Batch(images[order], jnp.asarray(labels)[order])
    adapted = rj.inner_loop(
        rj.nn.cross_entropy(model.apply),
        model.inner_optimizer,
        start,
        batches,
        model.inner_opt_state,
    )
    expected = model.answer(adapted.params, support, query)
    np.testing.assert_allclose(path.losses, adapted.losses, rtol=1e-4)
    again = model.answer(model.adapt(support, labels).params, support, query)
    np.testing.assert_allclose([path.predictions[-1], again], [expected] * 2, atol=1e-5)


def test_prototypes_are_of_any_number_of_classes(from_prototypes, task):
    support, _, query = task
    path = from_prototypes.for_ways(5).trajectory(support[:5], np.arange(5), query)
    assert path.predictions.shape == (7, 5, 5)
    assert np.abs(path.predictions[0] - 1 / 5).max() > 0.1
    with pytest.raises(ValueError, match=r"apart, not 2: .* or a model with apply_for, whose"):
        dataclasses.replace(from_prototypes, apply_for=None).for_ways(2)


def test_images_are_bytes_or_numbers_from_0_to_1(model, task):
    support, labels, query = task
    as_numbers = model.predict(np.float32(support) / 255, labels.tolist(), np.float64(query) / 255)
    np.testing.assert_allclose(as_numbers, model.predict(*task), atol=1e-6)


@pytest.mark.parametrize("of_integers", [lambda images: images.astype(np.int64), np.ndarray.tolist])
def test_images_of_other_integers_are_refused(model, task, of_integers):
    support, labels, query = task
    adapted = model.adapt(support, labels).params
    for answer in (
        lambda images: model.predict(images, labels, query),
        lambda images: model.trajectory(support, labels, images),
        lambda images: model.answer(adapted, images, query),
    ):
        with pytest.raises(
            ValueError, match="images are uint8, or floating-point from 0 to 1, got int"
        ):
            answer(of_integers(support))


def test_points_of_a_curve_may_be_integers(curve):
    x = np.arange(3)[:, None]
    predicted = curve.predict(x, 3 * x, x)
    np.testing.assert_allclose(predicted, curve.predict(np.float32(x), np.float32(3 * x), x))


@pytest.mark.attack
def test_parameters_that_are_used_up_are_named(model, task):
    gone = dataclasses.replace(model, params=jax.tree.map(jnp.copy, model.params))
    jax.tree.map(lambda leaf: leaf.delete(), gone.params)
    support, labels, query = task
    for ask in (
        lambda: gone.predict(*task),
        lambda: gone.trajectory(*task),
        lambda: gone.adapt(support, labels),
        lambda: model.answer(gone.params, support, query),
        lambda: gone.for_ways(4),
        lambda: gone.program(),
    ):
        with pytest.raises(ValueError, match=r"donated: .*\['(Conv|Batch).*jnp\.copy"):
            ask()


def test_the_order_of_the_support_set_does_not_matter(model, task):
    support, labels, query = task
    one_each = np.array([1, 2, 4])
    first = model.predict(support[one_each], labels[one_each], query)
    other = model.predict(support[one_each[::-1]], labels[one_each[::-1]], query)
    np.testing.assert_allclose(first, other, atol=1e-5)


@pytest.mark.slow
def test_mini_batches_are_drawn_as_in_training(model):
    labels = np.array([0, 1, 1, 1, 1, 2, 2])
    plain = dataclasses.replace(model, balanced=False, batch_size=5, inner_steps=7)
    order = np.asarray(plain.mini_batches(labels))
    assert order.shape == (7, 5)
    passes = order.reshape(5, 7)
    assert (np.sort(passes) == np.arange(7)).all()
    assert (passes != passes[0]).any()
    assert (np.asarray(dataclasses.replace(plain, seed=1).mini_batches(labels)) != order).any()
    balanced = dataclasses.replace(model, batch_size=7, inner_steps=3)  # two of each
    order = np.asarray(balanced.mini_batches(labels))
    assert order.shape == (3, 6)
    assert (order[:, :2] == 0).all()
    assert set(order[:2, 2:4].flat) == {1, 2, 3, 4}  # two mini-batches are a pass
    assert (np.sort(order[:, 4:]) == [5, 6]).all()
    fewest = dataclasses.replace(model, batch_size=1, inner_steps=3)  # at least one of each
    assert fewest.mini_batches(labels).shape == (3, 3)
    whole = dataclasses.replace(model, balanced=False, batch_size=None)
    assert (np.asarray(whole.mini_batches(labels)) == np.arange(7)).all()


def test_passes_are_shuffled_evenly(model):
    labels = np.array([0] * 5 + [1] * 4 + [2])
    many = dataclasses.replace(model, batch_size=3, inner_steps=4000)
    order = np.asarray(many.mini_batches(labels))  # one of each class in a step
    firsts, counts = np.unique(order[::5, 0], return_counts=True)  # of each pass of class 0
    assert firsts.tolist() == [0, 1, 2, 3, 4]
    assert (abs(counts - 160) < 50).all()


@pytest.mark.slow
def test_balanced_mini_batches_of_many_classes_take_the_mean(model, task):
    large = dataclasses.replace(model, batch_size=12, training_batch=5)
    mean = dataclasses.replace(model, batch_size=12, training_batch=None)
    np.testing.assert_allclose(large.predict(*task), mean.predict(*task), atol=1e-6)
    summed = dataclasses.replace(large, balanced=False)
    first = lambda model: float(model.trajectory(*task).losses[0])
    np.testing.assert_allclose(first(summed), first(mean) * 12 / 5, rtol=1e-4)


@pytest.mark.slow
def test_another_number_of_classes(model, task):
    support, _, query = task
    five = model.for_ways(5)
    assert five.ways == 5
    assert five.predict(support[:5], np.arange(5), query).shape == (5, 5)
    kernel = five.inner_opt_state[0].nu["params"]["Dense_0"]["kernel"]
    assert kernel.shape[-1] == 5
    assert model.for_ways(3) is model
    net = classifier(3).clone(classifier_init=jax.nn.initializers.glorot_uniform())
    learned = dataclasses.replace(
        model, apply_for=None, params=net.init(jax.random.key(1), jnp.zeros((1, 4, 4, 1)))
    )
    two = learned.for_ways(2)
    predicted = two.predict(support[1:3], np.arange(2), query)
    np.testing.assert_allclose(predicted.sum(1), 1, rtol=1e-5)
    assert predicted.shape == (5, 2)
    for other in (model, learned):
        with pytest.raises(ValueError, match="ways is at least 1, got 0"):
            other.for_ways(0)
    for other, ways in ((learned, 4), (two, 3)):
        with pytest.raises(ValueError, match=f"classes apart, not {ways}: give that many or fewer"):
            other.for_ways(ways)


def test_models_that_differ_in_their_parameters_alone_share_a_program(model, task):
    untrained = model.untrained(jax.random.key(5))
    first = model.predict(*task)
    programs = adaptation.predict._cache_size()
    assert np.abs(np.asarray(untrained.predict(*task) - first)).max() > 1e-3
    assert adaptation.predict._cache_size() == programs
    assert untrained.for_ways(4).untrained(jax.random.key(5)).params["params"]["Dense_0"][
        "kernel"
    ].shape == (16, 4)


def test_a_curve_of_ones_own(curve):
    curve = dataclasses.replace(curve, inner_steps=300)
    x = np.linspace(-1, 1, 9)[:, None]
    predicted = curve.predict(x, 3 * x + 2, x + 1)
    np.testing.assert_allclose(predicted, 3 * (x + 1) + 2, atol=0.05)
    path = curve.trajectory(x, 3 * x + 2, x)
    np.testing.assert_allclose(path.predictions[0], x, atol=1e-6)
    assert path.losses[-1] < 1e-2 < path.losses[0]


def test_what_does_not_fit_is_refused(model, curve, task):
    support, labels, query = task
    with pytest.raises(ValueError, match=r"of shape \(4, 4, 1\) each, got shapes \(6, 3, 4, 1\)"):
        model.predict(support[:, 1:], labels, query)
    with pytest.raises(ValueError, match=r"got shapes \(6, 4, 4, 1\) and \(0, 4, 4, 1\)"):
        model.predict(support, labels, query[:0])
    with pytest.raises(ValueError, match=r"got shapes \(\) and \(5, 4, 4, 1\)"):
        model.predict(3, labels, query)
    with pytest.raises(ValueError, match=r"one for each of 6 inputs, got shape \(5,\)"):
        model.predict(support, labels[:5], query)
    for odd in ([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 1], [0.0, 1, 2, 0, 1, 2], [-1, 0, 1, 2, 0, 1]):
        with pytest.raises(ValueError, match="labels are the integers from 0 to 2, each at least"):
            model.trajectory(support, odd, query)
    with pytest.raises(ValueError, match=r"one for each of 3 inputs, got shape \(3,\)"):
        curve.predict(np.ones((3, 1)), np.ones(3), np.ones((3, 1)))
    with pytest.raises(ValueError, match="this model has no init"):
        curve.untrained(jax.random.key(0))
    with pytest.raises(ValueError, match="inner_steps is at least 1, got 0"):
        dataclasses.replace(model, inner_steps=0)
    with pytest.raises(ValueError, match="balanced mini-batches have a size: give batch_size"):
        dataclasses.replace(model, batch_size=None)
