"""Mini-batches, and the sine waves drawn as tasks."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.sinusoids import sinusoids
from reptile_jax.tasks import minibatch_order, shuffles


@pytest.mark.parametrize(("examples", "steps", "batch_size"), [(6, 3, 2), (5, 4, 3), (4, 3, 7)])
def test_minibatches_cycle_through_shuffles(examples, steps, batch_size):
    order = minibatch_order(jax.random.key(0), examples, steps=steps, batch_size=batch_size)
    assert order.shape == (steps, batch_size)
    in_a_row = np.asarray(order).reshape(-1)
    passes = [in_a_row[i : i + examples] for i in range(0, len(in_a_row), examples)]
    for one in passes:
        assert len(set(one)) == len(one)
    whole = [one for one in passes if len(one) == examples]
    assert len(whole) < 2 or any((one != whole[0]).any() for one in whole[1:])


def test_minibatches_with_replacement_repeat_nothing_inside_a_batch():
    order = minibatch_order(jax.random.key(0), 6, steps=50, batch_size=4, replace=True)
    assert all(len(set(batch)) == 4 for batch in np.asarray(order).tolist())
    counts = collections.Counter(np.asarray(order).reshape(-1).tolist())
    assert len(counts) == 6
    assert counts.most_common(1)[0][1] > counts.most_common()[-1][1]  # not in passes


def test_every_leaf_follows_the_same_order():
    examples = {"x": jnp.arange(6) * 10, "y": [jnp.arange(12).reshape(6, 2)]}
    batches = rj.minibatches(jax.random.key(1), examples, steps=2, batch_size=5)
    assert batches["x"].shape == (2, 5)
    np.testing.assert_array_equal(batches["y"][0][..., 0], batches["x"] // 5)


@pytest.mark.parametrize(
    ("examples", "sizes", "message"),
    [
        (jnp.zeros((3, 2)), {"steps": 0, "batch_size": 1}, "steps is at least 1, got 0"),
        (jnp.zeros((0, 2)), {"steps": 1, "batch_size": 1}, r"leading axis \[examples\] of 0"),
        (
            (jnp.zeros(3), jnp.zeros(4)),
            {"steps": 1, "batch_size": 1},
            r"disagree on their leading axis \[examples\]: \[0\]: 3, \[1\]: 4",
        ),
        (
            jnp.zeros(3),
            {"steps": 1, "batch_size": 4, "replace": True},
            "a batch of 4 cannot be drawn without repetition from 3",
        ),
    ],
)
def test_bad_minibatches_are_named(examples, sizes, message):
    with pytest.raises(ValueError, match=message):
        rj.minibatches(jax.random.key(0), examples, **sizes)


def test_waves_have_the_papers_amplitudes_and_phases():
    tasks = jax.vmap(sinusoids().sample)(jax.random.split(jax.random.key(0), 2000))
    x, y = (np.asarray(leaf)[..., 0] for leaf in tasks.query)
    np.testing.assert_allclose(x[0], np.linspace(-5, 5, 50), rtol=1e-5)
    # a·sin(x + b) = p·sin(x) + q·cos(x), fitted exactly.
    basis = np.stack([np.sin(x[0]), np.cos(x[0])], 1)
    (p, q), *_ = np.linalg.lstsq(basis, y.T, rcond=None)
    np.testing.assert_allclose(basis @ [p, q], y.T, atol=1e-4)
    amplitude, phase = np.hypot(p, q), np.arctan2(q, p) % (2 * np.pi)
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, 2 * np.pi)):
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high
        np.testing.assert_allclose(values.mean(), (low + high) / 2, rtol=0.04)


def test_support_points_lie_on_the_wave_and_one_epoch_has_each_once():
    task = sinusoids().sample(jax.random.key(3))
    assert task.support.inputs.shape == (5, 10, 1)
    np.testing.assert_array_equal(np.sort(task.support.inputs.reshape(-1)), task.query.inputs[:, 0])
    wave = dict(zip(*np.asarray(task.query)[..., 0].tolist(), strict=True))
    for x, y in np.asarray(task.support).reshape(2, -1).T.tolist():
        assert wave[x] == y
    few = sinusoids(shots=10, steps=32).sample(jax.random.key(3)).support.inputs
    assert all(len(set(np.asarray(batch).reshape(-1).tolist())) == 10 for batch in few)
    assert len(set(np.asarray(few).reshape(-1).tolist())) == 10


def test_chosen_points_are_any_of_the_grid_alike():
    """Over many tasks each point is chosen as often, and comes in each place as often."""
    draw = sinusoids(shots=3, points=5, steps=1, batch_size=2).sample
    inputs = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 10_000)).support.inputs
    place = np.round((np.asarray(inputs)[:, 0, :, 0] + 5) / 2.5).astype(int)
    pairs, counts = np.unique(place, axis=0, return_counts=True)
    assert len(pairs) == 20
    np.testing.assert_allclose(counts, 500, atol=5 * 500**0.5)


def test_shuffles_are_uniform_permutations():
    words = jax.random.bits(jax.random.key(1), (24_000, 4))
    orders, counts = np.unique(np.asarray(shuffles(words)), axis=0, return_counts=True)
    np.testing.assert_array_equal(orders, list(itertools.permutations(range(4))))
    np.testing.assert_allclose(counts, 1000, atol=5 * 1000**0.5)
    long = shuffles(jax.random.bits(jax.random.key(2), (7, 50)))
    np.testing.assert_array_equal(np.sort(long), np.tile(np.arange(50), (7, 1)))
    assert len({tuple(row) for row in np.asarray(long).tolist()}) == 7


def test_bad_waves_are_named():
    with pytest.raises(ValueError, match="1 <= shots <= points, got 60 of 50"):
        sinusoids(shots=60)
    with pytest.raises(ValueError, match="steps is at least 1, got 0"):
        sinusoids(steps=0)
