"""However the tasks run, and whatever is wrong with some of them, the mean is the same."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from reptile_jax._types import Draws
from tests.conftest import outside_strict

RATE = 0.05


def loss_fn(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w1"])
    return jnp.mean((hidden @ params["w2"] - batch.targets) ** 2)


def params():
    rng = np.random.default_rng(0)
    return {"w1": rng.normal(size=(2, 5)), "w2": rng.normal(size=(5, 1))}


def tasks(num_tasks, weight=None):
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(num_tasks, 3, 4, 2)))
    weight = None if weight is None else jnp.asarray(weight, jnp.float64)
    return rj.Task(rj.Batch(inputs, jnp.sin(inputs[..., :1] * 2)), weight=weight)


def adam():
    return outside_strict(optax.adam(RATE, b1=0.0, b2=0.9))


@functools.cache  # a learner is a program: tests that ask for the same one compile it once
def learner_with(**options):
    sibling, outer = rj.reptile(loss_fn, adam()), optax.sgd(0.5, momentum=0.9)
    return rj.meta_learner(sibling, outer, donate=False, **options)


def step(tasks, *, state=None, **options):
    learner = learner_with(**options)
    return learner.step(state or learner.init(params()), tasks)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inner_opt_state", ["reset", "average"])
def test_chunks_of_any_size_give_the_same_meta_step(inner_opt_state):
    batch = tasks(5, weight=[0.1, 2, 0.7, 1, 3])
    expected = step(batch, tasks_at_once=5, inner_opt_state=inner_opt_state)
    for at_once in (1, 2, 3, 8):
        result = step(batch, tasks_at_once=at_once, inner_opt_state=inner_opt_state)
        chex.assert_trees_all_close(result, expected, rtol=1e-12)
        assert result[1].losses.shape == (5, 3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_weights_count_tasks_more_than_once(at_once):
    three_times = jax.tree.map(lambda leaf: leaf[np.array([0, 0, 0, 1])], tasks(2))
    weighted = step(tasks(2, weight=[3, 1]), tasks_at_once=at_once)[0]
    chex.assert_trees_all_close(
        weighted.params, step(three_times, tasks_at_once=at_once)[0].params, rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bad", [0.0, -0.5, np.nan, np.inf])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_weight_that_is_not_finite_and_positive_counts_for_nothing(bad, at_once):
    good = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], tasks(3, weight=[0.1, 1, 0.7]))
    state, info = step(tasks(3, weight=[0.1, bad, 0.7]), tasks_at_once=at_once)
    assert info.finite.tolist() == [True, bool(np.isfinite(bad)), True]
    chex.assert_trees_all_close(state, step(good, tasks_at_once=at_once)[0], rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("inner_opt_state", "at_once"),
    [("reset", 1), ("reset", 2), ("reset", 4), ("average", 1), ("average", 4), ("carry", 1)],
)
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e200])
def test_a_task_that_is_not_finite_is_left_out(inner_opt_state, at_once, poison):
    batch = tasks(4)
    support = batch.support._replace(targets=batch.support.targets.at[1, 2].set(poison))
    good = jax.tree.map(lambda leaf: leaf[np.array([0, 2, 3])], batch)
    options = {"inner_opt_state": inner_opt_state, "tasks_at_once": at_once}
    state, info = step(rj.Task(support), **options)
    expected, _ = step(good, **options)
    chex.assert_trees_all_close(state, expected, rtol=1e-12)
    np.testing.assert_array_equal(info.finite, [True, False, True, True])


@pytest.mark.parametrize(
    ("inner_opt_state", "at_once"),
    [("reset", 2), ("average", 1), ("average", 2), ("average", 3), ("carry", 1)],
)
def test_a_gradient_a_state_or_a_loss_that_alone_overflows_is_left_out(inner_opt_state, at_once):
    def compute(params, opt_state, task):
        gradient, ended, loss = task.support[0]
        started = 0.0 if opt_state is None else opt_state
        return rj.TaskGradient(gradient * 3e38, started + ended * 3e38, loss[None] * 3e38)

    learner = rj.meta_learner(
        rj.MetaGradient(lambda params: jnp.zeros(()), compute),
        optax.sgd(1.0),
        inner_opt_state=inner_opt_state,
        tasks_at_once=at_once,
        donate=False,
    )
    state = learner.init(jnp.ones(()))
    small = np.full((3, 1, 3), 1e-38, np.float32)
    small[2] *= 2
    expected = learner.step(state, rj.Task(small, weight=jnp.array([1.0, 0.0, 1.0])))[0]
    assert np.isfinite(expected.params)
    for overflows in range(3):
        tasks = small.copy()
        tasks[1, 0, overflows] = 10  # 3e39, which float32 does not hold
        after, info = learner.step(state, rj.Task(tasks))
        counts = inner_opt_state == "reset" and overflows == 1  # a state that is thrown away
        np.testing.assert_array_equal(info.finite, [True, counts, True])
        if not counts:
            chex.assert_trees_all_close(after, expected, rtol=1e-6)


def test_a_model_state_that_is_reset_may_be_anything():
    loss_fn = lambda params, state, batch: (jnp.mean((params - batch) ** 2), state / 0)
    options = {"inner_opt_state": "reset", "donate": False}
    for policy, counts in (("reset", True), ("average", False)):
        gradient = rj.reptile(loss_fn, optax.sgd(0.1))
        learner = rj.meta_learner(gradient, optax.sgd(1.0), model_state=policy, **options)
        state = learner.init(jnp.ones(()), jnp.ones(()))
        after, info = learner.step(state, rj.Task(jnp.zeros((2, 1, 3))))
        assert info.finite.tolist() == [counts] * 2
        np.testing.assert_allclose(after.params, 0.8 if counts else 1.0, rtol=1e-6)
        assert after.model_state == 1


@pytest.mark.parametrize("weight", [jnp.ones(1), jnp.ones(3), [1.0]])
def test_a_drawn_task_has_one_weight(weight):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Weighted:
        def sample(self, key):
            return rj.Task(jax.random.normal(key, (3, 2)), weight=weight)

    loss_fn = lambda params, batch: jnp.mean((params - batch) ** 2)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0))
    state, how = learner.init(jnp.ones(())), (Weighted(), jax.random.key(0))
    message = "a drawn task's weight is one number, got shape"
    with pytest.raises(ValueError, match=message):
        rj.meta_steps(learner, state, *how, num_steps=1, meta_batch=2)
    with pytest.raises(ValueError, match=message):
        rj.evaluate(loss_fn, lambda *_: 0.0, optax.sgd(0.1), jnp.ones(()), *how, num_tasks=3)


def test_a_float16_gradient_has_a_norm():
    loss_fn = lambda params, batch: jnp.sum(params * batch)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(1.0)), optax.sgd(1e-3))
    tasks = rj.Task(jnp.full((2, 1, 4), 300, jnp.float16))
    _, info = learner.step(learner.init(jnp.ones(4, jnp.float16)), tasks)
    assert info.gradient_norm == np.float32(600)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("inner_opt_state", "at_once", "devices"),
    [
        *[("reset", 1, 1), ("reset", 3, 1), ("average", 1, 1), ("average", 2, 1)],
        *[("average", 2, 2), ("carry", 1, 1)],
    ],
)
def test_without_a_finite_task_nothing_moves_but_the_step(inner_opt_state, at_once, devices):
    mesh = rj.task_mesh(jax.devices()[:devices]) if devices > 1 else None
    options = {"inner_opt_state": inner_opt_state, "tasks_at_once": at_once, "mesh": mesh}
    started, _ = step(tasks(3), **options)  # momentum and inner state are not zero
    nothing = rj.Task(jax.tree.map(lambda leaf: leaf * jnp.nan, tasks(3).support))
    after, info = step(nothing, state=started, **options)
    chex.assert_trees_all_equal(after, started._replace(step=started.step + 1))
    assert float(info.gradient_norm) == 0


# An independent flow of the inner Adam's second moment, as in the paper's released code.


def numpy_flow(policy, meta_steps, meta_rate):
    """Yields θ, the second moment and the step count after each meta step."""
    theta, count = params(), 0
    moment = {k: np.zeros_like(value) for k, value in theta.items()}
    gradient_of = jax.jit(jax.grad(loss_fn))
    for batch in meta_steps:
        start, ends = (moment, count), []
        for inputs, targets in zip(*batch.support, strict=True):
            if policy == "average":
                moment, count = start
            phi = theta
            for x, y in zip(inputs, targets, strict=True):
                gradient, count = gradient_of(phi, rj.Batch(x, y)), count + 1
                moment = {k: 0.9 * moment[k] + 0.1 * np.square(gradient[k]) for k in phi}
                scale = {k: np.sqrt(moment[k] / (1 - 0.9**count)) + 1e-8 for k in phi}
                phi = {k: phi[k] - RATE * gradient[k] / scale[k] for k in phi}
            ends.append((phi, moment))
        if policy == "average":
            moment = {k: np.mean([end[k] for _, end in ends], axis=0) for k in theta}
        mean_phi = {k: np.mean([phi[k] for phi, _ in ends], axis=0) for k in theta}
        theta = {k: theta[k] + meta_rate * (mean_phi[k] - theta[k]) for k in theta}
        yield theta, moment, count


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("inner_opt_state", "flow", "num_tasks"),
    [("carry", "carry", 5), ("average", "carry", 1), ("average", "average", 5)],
)
def test_the_inner_state_flows_as_its_policy_says(inner_opt_state, flow, num_tasks):
    learner = rj.meta_learner(
        rj.reptile(loss_fn, adam()), optax.sgd(0.7), inner_opt_state=inner_opt_state
    )
    state = learner.init(params())
    meta_steps = [jax.tree.map(lambda x, i=i: x + 0.1 * i, tasks(num_tasks)) for i in range(4)]
    for batch, (theta, moment, count) in zip(
        meta_steps, numpy_flow(flow, meta_steps, 0.7), strict=True
    ):
        state, _ = learner.step(state, batch)
        chex.assert_trees_all_close(state.params, theta, rtol=1e-11)
        adam_state = state.inner_opt_state[0]
        chex.assert_trees_all_close(adam_state.nu, moment, rtol=1e-11)
        assert int(adam_state.count) == count


def test_a_state_cannot_be_carried_side_by_side():
    meta_gradient, outer = rj.reptile(loss_fn, adam()), optax.sgd(1.0)
    state = rj.meta_learner(meta_gradient, outer, inner_opt_state="carry").init(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params())
    )
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tasks(2))
    run = lambda **options: rj.meta_step(
        meta_gradient, outer, state, batch, inner_opt_state="carry", **options
    )
    with pytest.raises(
        ValueError,
        match=r"one task after another.*, which tasks_at_once=2 does not",
    ):
        run(tasks_at_once=2)
    assert int(run()[0].inner_opt_state[0].count) == 6


def test_draws_are_the_tasks_of_their_keys():
    class Lines:
        def sample(self, key):
            inputs = jax.random.normal(key, (3, 4, 2))
            return rj.Task(rj.Batch(inputs, inputs[..., :1]))

    keys = jax.random.split(jax.random.key(0), 3)
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(1.0), donate=False)
    state = learner.init(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params()))
    jax.tree_util.register_static(Lines)
    drawn = jax.vmap(Lines().sample)(keys)
    chex.assert_trees_all_close(
        learner.step(state, Draws(Lines(), keys)), learner.step(state, drawn), rtol=1e-6
    )


@pytest.mark.parametrize(("at_once", "loops"), [(4, 1), (2, 2), (1, 2)])
def test_a_single_chunk_is_in_no_loop(at_once, loops):
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(RATE)), optax.sgd(1.0), donate=False)
    step = functools.partial(rj.meta_step, rj.reptile(loss_fn, optax.sgd(RATE)), optax.sgd(1.0))
    small = lambda tree: jax.tree.map(np.float32, tree)
    given = jax.eval_shape(learner.init, small(params())), small(tasks(4))
    traced = jax.make_jaxpr(functools.partial(step, tasks_at_once=at_once))(*given)
    assert str(traced).count("= scan[") == loops
