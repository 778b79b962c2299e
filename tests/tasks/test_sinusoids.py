"""The sine waves: their amplitudes and phases, and the points that are drawn."""

import jax
import numpy as np
import pytest
from hypothesis import given

from reptile_jax.tasks import sinusoids
from tests.nonsense import answered, fuzz, mostly


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


def test_bad_waves_are_named():
    with pytest.raises(ValueError, match="1 <= shots <= points, got 60 of 50"):
        sinusoids(shots=60)
    with pytest.raises(ValueError, match="steps is at least 1, got 0"):
        sinusoids(steps=0)


@fuzz
@given(mostly(amplitude=(0.1, 1), phase=(0, 1), inputs=(-1, 1), points=5, shots=5, steps=2))
def test_sine_waves_of_anything(arguments):
    with answered():
        drawn = jax.eval_shape(sinusoids(**arguments).sample, jax.random.key(0))
        assert drawn.support.inputs.shape[1] == 10
