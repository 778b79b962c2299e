"""What recipes are made of, against their definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks.paper import levers
from tests.benchmarks.paper.test_recipes import image_splits


def test_the_first_mini_batch_gives_the_start_and_no_inner_step():
    loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
    params, task = jnp.ones(2), rj.Task(jnp.arange(6.0).reshape(3, 2))
    moved_to = lambda params, first: params + first
    found = levers.started(moved_to, loss_fn, optax.sgd(0.1)).compute(params, None, task)
    rest = rj.inner_loop(loss_fn, optax.sgd(0.1), params + task.support[0], task.support[1:])
    chex.assert_trees_all_close(found.gradient, params - rest.params)
    assert found.losses.shape == (3,)


def test_rates_scale_updates_and_leave_the_state():
    params = {"params": {"Dense_0": jnp.ones(2), "Conv_0": jnp.ones(2)}}
    inner = optax.sgd(0.1, 0.9)
    scaled = levers.rates(inner, 0.5, 4.0)
    (plain, one), (found, other) = (o.update(params, o.init(params)) for o in (inner, scaled))
    chex.assert_trees_all_equal(one, other)
    np.testing.assert_allclose(found["params"]["Dense_0"], 4 * plain["params"]["Dense_0"])
    np.testing.assert_allclose(found["params"]["Conv_0"], 0.5 * plain["params"]["Conv_0"])


def test_a_tail_mean_is_of_the_parameters_after_the_given_steps():
    optimizer = levers.tail_mean(optax.sgd(1.0), 2)
    params = jnp.zeros(2)
    state, seen = optimizer.init(params), []
    for step in range(5):
        updates, state = optimizer.update(jnp.full(2, step**2.0), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    np.testing.assert_allclose(state.mean, np.mean(seen[2:], axis=0))


def episodes(**sizes):
    return rj.tasks.few_shot(image_splits(6, 2).train, ways=4, shots=3, **sizes)


def test_halves_are_of_different_classes_and_together_the_mini_batches():
    tasks = episodes(steps=3, batch_size=4, balanced=True)
    found = jax.jit(lambda key: levers.Halves(tasks).sample(key))(jax.random.key(0)).support
    assert found.inputs.shape == (6, 2, 8, 8, 1)
    pairs = np.asarray(found.targets).reshape(3, 4)
    np.testing.assert_array_equal(np.sort(pairs), np.tile(np.arange(4), (3, 1)))
    assert len({tuple(row) for row in pairs}) > 1  # cut anew in every step


def test_the_first_mini_batch_comes_again():
    tasks, key = episodes(steps=5, batch_size=4, balanced=True), jax.random.key(0)
    plain, found = (t.sample(key).support for t in (tasks, levers.FirstAgain(tasks, 3)))
    for step, same in enumerate((0, 0, 0, 1, 2)):
        np.testing.assert_array_equal(found.inputs[step], plain.inputs[same])


def test_distorted_by_nothing_is_as_drawn_and_mirrored_by_class():
    tasks, key = episodes(steps=3, batch_size=4, query_shots=1, balanced=True), jax.random.key(0)
    plain = tasks.sample(jax.random.split(key, 4)[0])
    chex.assert_trees_all_equal(levers.Distorted(tasks).sample(key), plain)
    mirrored = levers.Distorted(tasks, mirrored=True).sample(key)
    flips = {}
    for images, others, labels in zip(*plain.support[:1], *mirrored.support, strict=True):
        for image, other, label in zip(images, others, labels, strict=True):
            flips.setdefault(int(label), set()).add(bool((image[:, ::-1] == other).all()))
            assert (image == other).all() or (image[:, ::-1] == other).all()
    assert sorted(map(len, flips.values())) == [1] * 4
    assert {True, False} == set.union(*flips.values())
    chex.assert_trees_all_equal(mirrored.query, plain.query)


def test_an_affine_map_shifts_and_fills_with_white():
    image = jnp.arange(25.0).reshape(1, 5, 5, 1) / 25
    shift = jnp.zeros((1, 2, 3)).at[0, 1, 2].set(0.5)  # a quarter of the width, to the left
    moved = levers.affine(image, shift)
    np.testing.assert_allclose(moved[0, :, :-1], image[0, :, 1:], atol=1e-6)
    np.testing.assert_allclose(moved[0, :, -1], 1.0)
    np.testing.assert_allclose(levers.affine(image, jnp.zeros((1, 2, 3))), image, atol=1e-6)


def test_classes_are_distorted_alike_in_all_steps():
    tasks, key = episodes(steps=3, batch_size=4, balanced=True), jax.random.key(0)
    white = jax.tree.map(jnp.asarray, tasks.classes)
    same = white._replace(images=jnp.tile(white.images[:1], (len(white.images), 1, 1, 1)))
    found = levers.Distorted(
        rj.tasks.few_shot(same, ways=4, shots=3, steps=3, batch_size=4, balanced=True), classes=0.2
    ).sample(key)
    np.testing.assert_array_equal(found.support.targets[0], found.support.targets[1])
    np.testing.assert_allclose(found.support.inputs[0], found.support.inputs[1], atol=1e-6)
    assert np.abs(found.support.inputs[0, 0] - found.support.inputs[0, 1]).max() > 0.05
