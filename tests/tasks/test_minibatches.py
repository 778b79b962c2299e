"""Mini-batches cycle through shuffles, or are drawn with replacement."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from reptile_jax.tasks import minibatch_order, minibatches
from reptile_jax.tasks.minibatches import shuffles
from tests.nonsense import answered, fuzz, mostly


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
    batches = minibatches(jax.random.key(1), examples, steps=2, batch_size=5)
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
        minibatches(jax.random.key(0), examples, **sizes)


def test_shuffles_are_uniform_permutations():
    words = jax.random.bits(jax.random.key(1), (24_000, 4))
    orders, counts = np.unique(np.asarray(shuffles(words)), axis=0, return_counts=True)
    np.testing.assert_array_equal(orders, list(itertools.permutations(range(4))))
    np.testing.assert_allclose(counts, 1000, atol=5 * 1000**0.5)
    long = shuffles(jax.random.bits(jax.random.key(2), (7, 50)))
    np.testing.assert_array_equal(np.sort(long), np.tile(np.arange(50), (7, 1)))
    assert len({tuple(row) for row in np.asarray(long).tolist()}) == 7


@fuzz
@given(mostly(key=jax.random.key(0), examples=jnp.ones((5, 2)), steps=2, batch_size=3))
def test_mini_batches_of_anything(arguments):
    with answered():
        jax.eval_shape(lambda: minibatches(**arguments))
