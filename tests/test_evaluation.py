"""Evaluation: the curve against stepping by hand, and the interval against its meaning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from tests.conftest import outside_strict

STEPS, RATE = 4, 0.3
sgd = optax.sgd(RATE)
adam = outside_strict(optax.adam(0.1))


class Places(NamedTuple):
    """Tasks of finding a place on the line from noisy sights of it: query the place, `[]`."""

    spread: jax.Array

    def sample(self, key):
        place, *noise = jax.random.normal(key, (2 * STEPS + 1,))
        place = self.spread * place
        return rj.Task(place + jnp.stack(noise).reshape(STEPS, 2), place)


def loss_fn(params, sights):
    return jnp.mean((params["w"] - sights) ** 2)


def scores_of(params, task):
    return {"error": (params["w"] - task.query) ** 2, "at": (params["w"],)}


PLACES, PARAMS, KEY = Places(jnp.float32(3)), {"w": jnp.float32(0.5)}, jax.random.key(5)


def tasks_of(key, num_tasks):
    """The tasks, drawn one by one."""
    return [jax.device_get(PLACES.sample(jax.random.fold_in(key, i))) for i in range(num_tasks)]


def by_hand(task, w=0.5):
    """Where gradient descent is after 0, 1, ... steps."""
    path = [w]
    for sights in np.asarray(task.support, np.float64):
        path.append(path[-1] - RATE * 2 * np.mean(path[-1] - sights))
    return np.array(path)


@pytest.mark.parametrize(("score_every", "points"), [(1, 5), (2, 3), (4, 2), (None, 2)])
def test_the_curve_is_that_of_stepping_by_hand(score_every, points):
    result = rj.evaluate(
        loss_fn, scores_of, sgd, PARAMS, PLACES, KEY, num_tasks=3, score_every=score_every
    )
    assert result.steps.tolist() == np.linspace(0, STEPS, points, dtype=int).tolist()
    for i, task in enumerate(tasks_of(KEY, 3)):
        path = by_hand(task)[result.steps]
        np.testing.assert_allclose(result.scores["at"][0][i], path, rtol=1e-5)
        np.testing.assert_allclose(result.scores["error"][i], (path - task.query) ** 2, rtol=1e-4)


def test_mean_and_interval_are_those_of_the_tasks():
    result = rj.evaluate(loss_fn, scores_of, sgd, PARAMS, PLACES, KEY, num_tasks=7, score_every=2)
    errors = np.array([(by_hand(t)[::2] - t.query) ** 2 for t in tasks_of(KEY, 7)])
    mean = errors.sum(0) / 7
    deviation = np.sqrt(((errors - mean) ** 2).sum(0) / 6)
    np.testing.assert_allclose(result.mean["error"], mean, rtol=1e-4)
    np.testing.assert_allclose(result.ci95["error"], 1.96 * deviation / 7**0.5, rtol=1e-4)
    assert jax.tree.structure(result.mean) == jax.tree.structure(result.ci95)
    assert jax.tree.map(np.shape, result.mean) == {"error": (3,), "at": ((3,),)}
    assert jax.tree.map(np.shape, result.scores) == {"error": (7, 3), "at": ((7, 3),)}


def test_the_mean_is_taken_in_double_precision():
    score = lambda params, task: jnp.float32(2.0**24) + 2 * jnp.sign(task.query)
    result = rj.evaluate(loss_fn, score, sgd, PARAMS, PLACES, KEY, num_tasks=7)
    signs = [np.sign(task.query) for task in tasks_of(KEY, 7)]
    np.testing.assert_allclose(result.mean - 2.0**24, 2 * np.mean(signs), rtol=1e-6)


def test_the_same_key_gives_the_same_tasks_whatever_is_evaluated():
    place = lambda params, task: task.query
    one = rj.evaluate(loss_fn, place, sgd, PARAMS, PLACES, KEY, num_tasks=4)
    steep = lambda params, sights: jnp.sum(params**4 * jnp.mean(sights))
    other = rj.evaluate(steep, place, adam, jnp.ones(3), PLACES, KEY, num_tasks=6, score_every=1)
    np.testing.assert_array_equal(one.scores[:, 0], other.scores[:4, 0])
    assert len(set(other.scores[:, 0].tolist())) == 6
    elsewhere = rj.evaluate(loss_fn, place, sgd, PARAMS, PLACES, jax.random.key(6), num_tasks=4)
    assert (elsewhere.scores[:, 0] != one.scores[:, 0]).all()


@pytest.mark.parametrize(
    ("tasks_at_once", "tasks_per_dispatch"),
    [(None, None), (1, 3), (3, None), (3, 3), (7, 100), (100, 1)],
)
def test_scores_do_not_depend_on_how_the_tasks_are_run(tasks_at_once, tasks_per_dispatch):
    calls = []
    result = rj.evaluate(
        loss_fn,
        scores_of,
        sgd,
        PARAMS,
        PLACES,
        KEY,
        num_tasks=7,
        tasks_at_once=tasks_at_once,
        tasks_per_dispatch=tasks_per_dispatch,
        report=lambda done, total: calls.append((done, total)),
    )
    ends = np.array([by_hand(task)[[0, STEPS]] for task in tasks_of(KEY, 7)])
    np.testing.assert_allclose(result.scores["at"][0], ends, rtol=1e-5)
    expected = {1: range(1, 8), 3: (3, 6, 7)}.get(tasks_per_dispatch, [7])
    assert calls == [(done, 7) for done in expected]


def test_every_task_starts_from_the_given_optimiser_state():
    warm = rj.inner_loop(loss_fn, adam, PARAMS, PLACES.sample(jax.random.key(9)).support).opt_state
    assert int(warm[0].count) == STEPS
    ends = {}
    for name, opt_state in (("warm", warm), ("first", None)):
        result = rj.evaluate(
            loss_fn,
            scores_of,
            adam,
            PARAMS,
            PLACES,
            KEY,
            num_tasks=3,
            opt_state=opt_state,
            score_every=2,
        )
        ends[name] = result.scores["at"][0][:, -1]
        for i, task in enumerate(tasks_of(KEY, 3)):
            for at, steps in ((1, 2), (2, 4)):
                adapted = rj.inner_loop(loss_fn, adam, PARAMS, task.support[:steps], opt_state)
                np.testing.assert_allclose(
                    result.scores["at"][0][i, at], adapted.params["w"], rtol=1e-5
                )
    assert (np.abs(ends["warm"] - ends["first"]) > 1e-3).all()


def test_what_was_given_is_left_as_it_was():
    warm = adam.init(PARAMS)
    rj.evaluate(loss_fn, scores_of, adam, PARAMS, PLACES, KEY, num_tasks=2, opt_state=warm)
    assert PARAMS["w"].item() == 0.5
    assert warm[0].count.item() == 0


def test_the_interval_covers_the_true_mean_95_times_in_100():
    """Scores are draws from a uniform distribution, centred on 1."""
    score = lambda params, task: 1 + task.query

    class Uniform(NamedTuple):
        half: jax.Array

        def sample(self, key):
            draw = jax.random.uniform(key, (), minval=-self.half, maxval=self.half)
            return rj.Task(jnp.zeros((1, 1)), draw)

    def covers(seed):
        result = rj.evaluate(
            loss_fn, score, sgd, PARAMS, Uniform(jnp.float32(2)), jax.random.key(seed), num_tasks=60
        )
        return abs(result.mean[-1] - 1) < result.ci95[-1]

    share = np.mean([covers(seed) for seed in range(400)])
    assert 0.92 < share < 0.98  # three standard errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 1}, "num_tasks is at least 2, got 1"),
        ({"num_tasks": 0}, "num_tasks is at least 2, got 0"),
        ({"num_tasks": 2, "score_every": 0}, "score_every is at least 1, got 0"),
        ({"num_tasks": 2, "tasks_at_once": -1}, "tasks_at_once is at least 1, got -1"),
        ({"num_tasks": 2, "tasks_per_dispatch": 0}, "tasks_per_dispatch is at least 1"),
        ({"num_tasks": 2, "score_every": 3}, "score_every=3 does not divide the 4 inner steps"),
        ({"num_tasks": 2, "score_every": 8}, "score_every=8 does not divide the 4 inner steps"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rj.evaluate(loss_fn, scores_of, sgd, PARAMS, PLACES, KEY, **options)
