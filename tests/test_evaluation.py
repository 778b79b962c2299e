"""Evaluation: the curve against stepping by hand, and the interval against its meaning."""

from typing import NamedTuple

import flax.linen as nn
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


@pytest.mark.parametrize("given", [False, True])
def test_a_task_may_have_a_start_of_its_own(given):
    start_fn = lambda params, task: {"w": params["w"] + 2 * task.support[0, 0]}
    how = {} if given else {"key": KEY, "num_tasks": 3}
    tasks = stacked(3) if given else PLACES
    result = score_given(tasks, start_fn=start_fn, score_every=1, **how)
    for i, task in enumerate(tasks_of(KEY, 3)):
        path = by_hand(task, 0.5 + 2 * float(task.support[0, 0]))
        np.testing.assert_allclose(result.scores["at"][0][i], path, rtol=1e-4)
    with pytest.raises(TypeError, match="start_fn is a function"):
        score_given(tasks, start_fn=3, **how)


def test_an_optimiser_state_for_other_parameters_is_refused():
    """Of one number it would broadcast."""
    for opt_state in (adam.init({"w": jnp.zeros(1)}), sgd.init(PARAMS)):
        with pytest.raises(ValueError, match=r"its opt_state is .*, but that of this optimiser"):
            score_given(stacked(2), opt_state=opt_state, optimizer=adam)


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
        ({"num_tasks": 0}, "num_tasks is at least 1, got 0"),
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


def stacked(num_tasks, weights=None):
    """The first tasks of `KEY`, as one `Task`."""
    tasks = jax.tree.map(lambda *leaves: np.stack(leaves), *tasks_of(KEY, num_tasks))
    return tasks._replace(weight=weights)


def score_given(tasks, score_fn=scores_of, optimizer=sgd, **options):
    return rj.evaluate(loss_fn, score_fn, optimizer, PARAMS, tasks, **options)


def place_of(params, task):
    """A score that does not depend on adapting."""
    return task.query


@pytest.mark.parametrize("devices", [None, 3, 8])
@pytest.mark.parametrize(
    ("tasks_at_once", "tasks_per_dispatch"), [(None, None), (2, None), (1, 3), (3, 4), (100, 100)]
)
def test_given_tasks_are_scored_once_each_in_their_order(
    devices, tasks_at_once, tasks_per_dispatch
):
    calls = []
    result = score_given(
        stacked(7),
        score_every=2,
        tasks_at_once=tasks_at_once,
        tasks_per_dispatch=tasks_per_dispatch,
        report=lambda *done: calls.append(done),
        mesh=devices and rj.task_mesh(jax.devices()[:devices]),
    )
    paths = np.array([by_hand(task)[::2] for task in tasks_of(KEY, 7)])
    assert result.scores["at"][0].shape == (7, 3)
    np.testing.assert_allclose(result.scores["at"][0], paths, rtol=1e-5)
    np.testing.assert_allclose(result.mean["at"][0], paths.mean(0), rtol=1e-5)
    deviations = paths.std(0, ddof=1)
    np.testing.assert_allclose(result.ci95["at"][0], 1.96 * deviations / 7**0.5, atol=1e-5)
    assert result.steps.tolist() == [0, 2, 4]
    assert calls[-1] == (7, 7)


def test_given_tasks_are_scored_as_the_same_tasks_drawn():
    drawn = rj.evaluate(loss_fn, scores_of, sgd, PARAMS, PLACES, KEY, num_tasks=5)
    given = score_given(jax.tree.map(jnp.asarray, stacked(5)))
    jax.tree.map(np.testing.assert_array_equal, given, drawn)


def test_tasks_of_unequal_size_are_scored_without_their_padding():
    sights = lambda task, steps, batch: np.resize(task.support, (steps, batch))
    drawn, sizes = tasks_of(KEY, 3), ((4, 2), (2, 3), (1, 1))
    tasks = [
        rj.Task(sights(task, *size), np.full(i + 1, task.query))
        for i, (task, size) in enumerate(zip(drawn, sizes, strict=True))
    ]
    loss = rj.tasks.masked_mean(lambda params, sights: (params["w"] - sights) ** 2)
    score = lambda params, task: loss(params, task.query)
    result = rj.evaluate(loss, score, sgd, PARAMS, rj.tasks.stack_tasks(tasks))
    for scores, task in zip(result.scores, tasks, strict=True):
        ends = by_hand(task)[[0, -1]]
        np.testing.assert_allclose(scores, (ends - task.query[0]) ** 2, rtol=1e-4)


def test_a_single_task_has_a_score_and_no_interval():
    path = by_hand(tasks_of(KEY, 1)[0])[[0, STEPS]]
    for result in (
        score_given(stacked(1)),
        score_given(stacked(1, weights=np.full(1, 3.0))),
        rj.evaluate(loss_fn, scores_of, sgd, PARAMS, PLACES, KEY, num_tasks=1),
    ):
        np.testing.assert_allclose(result.mean["at"][0], path, rtol=1e-5)
        np.testing.assert_array_equal(result.mean["at"][0], result.scores["at"][0][0])
        assert np.isnan(result.ci95["at"][0]).all()
        assert result.ci95["at"][0].shape == (2,)
        assert not (result.ci95["error"] < 1).any()


def test_weights_weigh_the_mean_and_the_interval():
    weights = np.array([1.0, 4.0, 2.5, 0.5, 2.0], np.float32)
    result = score_given(stacked(5, weights))
    x = np.array([by_hand(task)[-1] for task in tasks_of(KEY, 5)])
    mean = sum(w * value for w, value in zip(weights, x, strict=True)) / 10
    squares = sum((w * (value - mean)) ** 2 for w, value in zip(weights, x, strict=True))
    np.testing.assert_allclose(result.mean["at"][0][-1], mean, rtol=1e-5)
    np.testing.assert_allclose(
        result.ci95["at"][0][-1], 1.96 * np.sqrt(5 / 4 * squares) / 10, rtol=1e-5
    )


def test_only_the_ratios_of_weights_matter():
    plain, weights = score_given(stacked(5)), np.array([1, 4, 2, 1, 2])
    same = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), a, b)
    same(score_given(stacked(5, np.full(5, 0.25, np.float32))), plain)
    same(score_given(stacked(5, 8 * weights)), score_given(stacked(5, weights)))


def test_a_task_without_a_weight_that_counts_has_a_score_and_no_part_in_the_mean():
    bad = np.array([np.nan, np.inf, 0.0, -1.0], np.float32)
    weights = np.concatenate([np.array([1.0, 3.0, 2.0], np.float32), bad])
    lost = lambda params, task: jnp.where(task.weight > 0.5, params["w"], jnp.nan)
    result = score_given(stacked(7, weights), lost)
    alone = score_given(stacked(3, weights[:3]), lost)
    for found, expected in ((result.mean, alone.mean), (result.ci95, alone.ci95)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert result.scores.shape == (7, 2)
    nothing = score_given(stacked(4, bad), scores_of)
    assert np.isnan([nothing.mean["error"], nothing.ci95["error"]]).all()
    np.testing.assert_array_equal(nothing.scores["at"][0], score_given(stacked(4)).scores["at"][0])


class Heavy(NamedTuple):
    """Scores uniform on `1 ± half`, 400 of them, and weights of which a few are most of the sum."""

    half: jax.Array

    def sample(self, key):
        score_key, weight_key = jax.random.split(key)
        draw = jax.random.uniform(score_key, (400,), minval=1 - self.half, maxval=1 + self.half)
        return rj.Task(jnp.zeros((1, 1)), draw, jax.random.exponential(weight_key))


def test_the_weighted_interval_covers_the_true_mean_95_times_in_100():
    result = rj.evaluate(loss_fn, place_of, sgd, PARAMS, Heavy(jnp.float32(2)), KEY, num_tasks=200)
    share = np.mean(np.abs(result.mean[-1] - 1) < result.ci95[-1])
    assert 0.92 < share < 0.98  # three standard errors
    unweighted = 1.96 * result.scores[:, -1].std(0, ddof=1) / 200**0.5
    assert np.mean(np.abs(result.mean[-1] - 1) < unweighted) < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": stacked(3), "key": KEY}, "tasks that are given.* leave out key"),
        ({"tasks": stacked(3), "num_tasks": 3}, "leave out num_tasks"),
        ({"tasks": stacked(3), "key": KEY, "num_tasks": 3}, "leave out key and num_tasks"),
        ({"tasks": PLACES}, "a distribution's tasks are drawn: give key and num_tasks"),
        ({"tasks": PLACES, "num_tasks": 3}, "are drawn: give key as well"),
        ({"tasks": PLACES, "key": KEY}, "are drawn: give num_tasks as well"),
        ({"tasks": tasks_of(KEY, 2)}, "got list: rj.tasks.stack_tasks makes one Task of many"),
        ({"tasks": tasks_of(KEY, 1)[0]}, r"disagree on their leading axis \[tasks\]"),
        ({"tasks": stacked(3, np.ones(2))}, "disagree"),
        ({"tasks": stacked(3, np.ones((3, 1)))}, r"weights are one for each task, \[3\]"),
        ({"tasks": rj.Task(np.zeros(3))}, "each task's support set"),
    ],
)
def test_what_is_missing_or_too_much_is_named(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        score_given(**arguments)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, jnp.int32])
def test_sizes_are_integers_of_any_kind(kind):
    result = rj.evaluate(
        loss_fn,
        scores_of,
        sgd,
        PARAMS,
        PLACES,
        KEY,
        num_tasks=kind(3),
        score_every=kind(2),
        tasks_at_once=kind(2),
        tasks_per_dispatch=kind(2),
    )
    paths = np.array([by_hand(task)[::2] for task in tasks_of(KEY, 3)])
    np.testing.assert_allclose(result.scores["at"][0], paths, rtol=1e-5)


# --------------------------------------------------------------- auxiliary outputs, model state


def test_auxiliary_outputs_of_the_loss_change_nothing():
    with_aux = lambda params, sights: (loss_fn(params, sights), {"sights": sights})
    run = lambda loss: rj.evaluate(
        loss, scores_of, sgd, PARAMS, PLACES, KEY, num_tasks=3, score_every=2
    )
    jax.tree.map(np.testing.assert_array_equal, run(with_aux), run(loss_fn))


class Normalised(nn.Module):
    """A linear model of inputs that batch norm has normalised."""

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(not train, momentum=0.7, epsilon=0.1, use_bias=False, use_scale=False)
        return nn.Dense(1, use_bias=False)(norm(x))


def normalised_by_hand(task, w, mean, var, score_every):
    """The query errors with running averages, after each `score_every` steps, in NumPy."""
    support, query = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), task[:2])
    scores = []
    for step, (x, y) in enumerate([*zip(*support, strict=True), (None, None)]):
        if step % score_every == 0:
            predicted = (query.inputs - mean) / np.sqrt(var + 0.1) @ w
            scores.append(np.mean((predicted - query.targets) ** 2))
        if x is not None:
            normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1)
            mean, var = 0.7 * mean + 0.3 * x.mean(0), 0.7 * var + 0.3 * x.var(0)
            w = w - RATE * 2 * normal.T @ (normal @ w - y) / len(x)
    return scores


class Shifted(NamedTuple):
    """Tasks of the difference of two inputs, which are not about zero."""

    shift: jax.Array

    def sample(self, key):
        x = 2 * jax.random.normal(key, (STEPS * 6 + 5, 2)) + self.shift
        examples = rj.Batch(x, x[:, :1] - x[:, 1:])
        support = jax.tree.map(lambda leaf: leaf[5:].reshape(STEPS, 6, -1), examples)
        return rj.Task(support, jax.tree.map(lambda leaf: leaf[:5], examples))


@pytest.mark.parametrize(
    ("given", "devices", "aux"), [(False, None, False), (True, None, True), (True, 2, False)]
)
def test_running_statistics_are_those_of_each_task(given, devices, aux):
    model, shifted = Normalised(), Shifted(jnp.float32(3))

    def loss(params, model_state, batch):
        predicted, model_state = model.apply(
            {"params": params, **model_state}, batch.inputs, True, mutable=["batch_stats"]
        )
        error = jnp.mean((predicted - batch.targets) ** 2)
        return (error, model_state, predicted) if aux else (error, model_state)

    def score(params, model_state, task):
        predicted = model.apply({"params": params, **model_state}, task.query.inputs, False)
        return jnp.mean((predicted - task.query.targets) ** 2)

    params = model.init(jax.random.key(0), jnp.zeros((1, 2)), False)["params"]
    averages = {"mean": np.full(2, 0.5, np.float32), "var": np.full(2, 1.5, np.float32)}
    tasks = [shifted.sample(jax.random.fold_in(KEY, i)) for i in range(3)]
    stack = lambda *leaves: jnp.stack(leaves)
    which = (jax.tree.map(stack, *tasks),) if given else (shifted, KEY)
    result = rj.evaluate(
        loss,
        score,
        sgd,
        params,
        *which,
        num_tasks=None if given else 3,
        model_state={"batch_stats": {"BatchNorm_0": averages}},
        score_every=2,
        mesh=devices and rj.task_mesh(jax.devices()[:devices]),
    )
    kernel = np.asarray(params["Dense_0"]["kernel"], np.float64)
    expected = [normalised_by_hand(task, kernel, 0.5, 1.5, 2) for task in tasks]
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4)
    assert (averages["mean"] == 0.5).all()


def test_the_spread_is_that_of_sorting_by_hand():
    """23 tasks, two points: the worst tenth is three tasks, others at each point."""
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=(23, 2)), "b": (rng.normal(size=(23, 2, 4)),)}
    found, errors = rj.spread(scores), rj.spread(scores, worst="highest")
    for point in range(2):
        ordered = sorted(scores["a"][:, point].tolist())
        np.testing.assert_allclose(found.worst_tenth["a"][point], sum(ordered[:3]) / 3)
        np.testing.assert_allclose(errors.worst_tenth["a"][point], sum(ordered[-3:]) / 3)
        np.testing.assert_allclose(found.mean["a"][point], sum(ordered) / 23)
        np.testing.assert_allclose(found.std["a"][point], scores["a"][:, point].std())
        assert found.quartiles["a"][[0, 2, 4], point].tolist() == [*ordered[::11]]
    assert found.worst_tenth["b"][0].shape == (2, 4)
    assert found.quartiles["b"][0].shape == (5, 2, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool, np.float16, jnp.bfloat16])
def test_scores_of_any_type_have_a_spread(dtype):
    scores = np.arange(40).reshape(20, 2).astype(dtype)
    expected = rj.spread(scores.astype(np.float64))
    for found, exact in zip(rj.spread(scores), expected, strict=True):
        np.testing.assert_array_equal(found, exact, strict=True)


def test_a_score_that_is_not_a_number_is_among_the_worst():
    scores = np.array([[1.0], [np.nan], [3.0]])
    assert np.isnan(rj.spread(scores).worst_tenth)
    assert np.isnan(rj.spread(scores, worst="highest").worst_tenth)


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match='worst is "lowest" or "highest", got \'high\''):
        rj.spread(np.zeros((2, 2)), worst="high")
    with pytest.raises(ValueError, match="scores has a leading axis"):
        rj.spread(np.zeros((0, 2)))
