"""The same examples in every step: the results of copies, in the memory of one."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from reptile_jax.tasks import few_shot, minibatches, repeat, sinusoids
from reptile_jax.tasks.repeated import split_last
from tests.conftest import outside_strict

STEPS, TASKS = 4, 3
SIBLINGS = {
    "reptile": rj.reptile,
    "fomaml": rj.fomaml,
    "maml": rj.maml,
    "foml": rj.foml,
    "weighted": functools.partial(rj.weighted_gradients, weights=(0.3, -1.0, 0.5, 2.0)),
}


def example_loss(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w1"])
    return jnp.sum((hidden @ params["w2"] - batch.targets) ** 2, -1)


masked_loss = rj.tasks.masked_mean(example_loss)


def loss_fn(params, batch):
    return jnp.mean(example_loss(params, batch))


def params():
    rng = np.random.default_rng(0)
    return {"w1": rng.normal(size=(2, 4)), "w2": rng.normal(size=(4, 1))}


def examples(*shape):
    inputs = np.random.default_rng(1).normal(size=(*shape, 2))
    return rj.Batch(inputs, np.sin(2 * inputs[..., :1]))


def copies(repeated, axis):
    """What a repeated support set stands for, `axis` being that of the steps."""
    copy = lambda leaf: np.repeat(np.expand_dims(leaf, axis), repeated.steps, axis)
    return jax.tree.map(copy, repeated.examples)


LINE = {"w": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}


def line(params, inputs):
    return inputs @ params["w"] + params["b"]


def adam():
    return outside_strict(optax.adam(0.05, b1=0.5, b2=0.9))


def test_a_step_is_taken_as_often_as_is_said():
    distance = lambda x, sights: jnp.mean((x - sights) ** 2) / 2
    sights = np.float32([1.0, 3.0])
    adapted = rj.inner_loop(distance, optax.sgd(0.5), jnp.zeros(()), repeat(sights, 3))
    np.testing.assert_allclose(adapted.params, 2 * (1 - 0.5**3), rtol=1e-6)
    np.testing.assert_allclose(adapted.losses, 0.5 + 2 * 0.25 ** np.arange(3), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "at_once", "devices"),
    [
        *[("reptile", 2, 1), ("reptile", 3, 1), ("reptile", 1, 2), ("fomaml", 1, 1)],
        *[("maml", 2, 1), ("maml", 1, 2), ("foml", 2, 1), ("weighted", 1, 1)],
    ],
)
def test_however_the_tasks_run_the_meta_step_is_that_of_copies(name, at_once, devices):
    query = None if name in ("foml", "weighted") else examples(TASKS, 6)
    repeated = rj.Task(repeat(examples(TASKS, 5), STEPS), query, np.array([0.5, 2.0, 1.0]))
    learner = rj.meta_learner(
        SIBLINGS[name](loss_fn, adam()),
        optax.sgd(0.5),
        inner_opt_state="average",
        tasks_at_once=at_once,
        mesh=rj.task_mesh(jax.devices()[:devices]) if devices > 1 else None,
        donate=False,
    )
    state = learner.init(params())
    for tasks in (repeated, rj.Task(copies(repeated.support, 1), *repeated[1:])):
        after, info = learner.step(*learner.step(state, tasks)[:1], tasks)
        assert info.losses.shape == (TASKS, STEPS)
        if tasks is repeated:
            result = jax.device_get((after, info))
        else:
            chex.assert_trees_all_close(result, jax.device_get((after, info)), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_auxiliary_outputs_and_a_models_state_pass_through():
    def loss_with_state(params, calls, batch):
        return loss_fn(params, batch) * (1 + calls), calls + 1, {"calls": calls}

    repeated = repeat(examples(5), STEPS)
    adapt = lambda batches: rj.inner_loop(
        loss_with_state, adam(), params(), batches, None, jnp.zeros(())
    )
    chex.assert_trees_all_close(adapt(repeated), adapt(copies(repeated, 0)), rtol=1e-12)
    assert adapt(repeated).aux["calls"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["reptile", "maml", "weighted"])
def test_padding_among_them_leaves_no_trace(name):
    task = rj.Task(repeat(examples(3), STEPS), examples(6))
    padded = jax.tree.map(lambda x: np.pad(x, ((0, 2), (0, 0)), constant_values=np.nan), task[0])
    masked = repeat(rj.tasks.Masked(padded.examples, np.arange(5) < 3), STEPS)
    expected = SIBLINGS[name](loss_fn, adam()).compute(params(), None, task)
    result = SIBLINGS[name](masked_loss, adam()).compute(params(), None, rj.Task(masked, task[1]))
    chex.assert_trees_all_close(result, expected, rtol=1e-12)
    none = repeat(masked.examples._replace(mask=np.zeros(5, bool)), STEPS)
    adapted = rj.inner_loop(masked_loss, adam(), params(), none)
    chex.assert_trees_all_equal(adapted.params, params())
    assert adapted.opt_state[0].count == 0
    assert adapted.losses.tolist() == [0] * STEPS


@pytest.mark.parametrize(("score_every", "points"), [(1, 7), (2, 4), (3, 3), (None, 2)])
def test_evaluation_scores_between_repeated_steps(score_every, points):
    loss = rj.nn.squared_error(line)
    evaluate = lambda size, **options: rj.evaluate(
        loss,
        lambda params, task: loss(params, task.query),
        optax.sgd(0.02),
        LINE,
        sinusoids(shots=6, points=9, steps=6, batch_size=size),
        jax.random.key(0),
        num_tasks=5,
        score_every=score_every,
        **options,
    )
    expected = evaluate(6)
    assert expected.scores.shape == (5, points)
    assert (np.diff(expected.mean) != 0).all()
    for options in ({}, {"tasks_at_once": 2}, {"mesh": rj.task_mesh(jax.devices()[:2])}):
        result = evaluate(None, **options)
        np.testing.assert_array_equal(result.steps, expected.steps)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-5)


def test_given_tasks_are_scored_as_those_of_copies():
    tasks = jax.tree.map(np.float32, rj.Task(repeat(examples(TASKS, 5), STEPS), examples(TASKS, 6)))
    plain = rj.Task(copies(tasks.support, 1), tasks.query)
    start = jax.tree.map(np.float32, params())
    score = lambda params, task: loss_fn(params, task.query)
    results = [
        rj.evaluate(loss_fn, score, optax.sgd(0.1), start, given, score_every=2)
        for given in (tasks, plain)
    ]
    assert results[0].scores.shape == (TASKS, 3)
    np.testing.assert_allclose(results[0].scores, results[1].scores, rtol=1e-5)


# ------------------------------------------------------------------------ what the library draws


def test_mini_batches_of_no_size_are_all_examples():
    given = examples(5)
    support = minibatches(jax.random.key(0), given, steps=3)
    whole = minibatches(jax.random.key(0), given, steps=3, batch_size=5)
    chex.assert_trees_all_equal(copies(support, 0), whole)


def drawn_by(**how):
    images = np.random.default_rng(0).integers(0, 256, (60, 2, 2, 1), np.uint8)
    classes = rj.tasks.ImageClasses(images, np.arange(6) * 10, np.full(6, 10))
    return few_shot(classes, ways=3, steps=4, query_shots=1, **how)


@pytest.mark.parametrize(
    ("distribution", "size"),
    [
        (functools.partial(sinusoids, shots=7), 7),
        (functools.partial(sinusoids, shots=50), 50),
        (functools.partial(drawn_by, shots=2), 6),
        (functools.partial(drawn_by, shots=2, balanced=True), 6),
    ],
)
def test_a_distribution_draws_the_same_tasks_without_copies(distribution, size):
    key = jax.random.key(3)
    repeated, whole = (distribution(batch_size=n).sample(key) for n in (None, size))
    chex.assert_trees_all_equal(copies(repeated.support, 0), whole.support)
    chex.assert_trees_all_equal(repeated.query, whole.query)


def test_training_draws_them_on_the_device():
    inner = rj.reptile(rj.nn.squared_error(line), optax.sgd(0.02))
    learner = rj.meta_learner(inner, optax.sgd(0.5), donate=False)
    results = [
        rj.meta_steps(
            learner,
            learner.init(LINE),
            sinusoids(steps=3, shots=8, batch_size=size),
            jax.random.key(0),
            num_steps=5,
            meta_batch=4,
        )
        for size in (None, 8)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5)


# ----------------------------------------------------------------------------------- unequal size


@pytest.mark.usefixtures("x64")
def test_tasks_of_unequal_size_stay_without_copies():
    tasks = [rj.Task(repeat(examples(n), STEPS)) for n in (3, 5)]
    stacked = rj.tasks.stack_tasks(tasks)
    assert stacked.support.steps == STEPS
    assert stacked.support.examples.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert rj.tasks.stack_tasks(tasks, steps=STEPS, batch=6).support.examples.mask.shape == (2, 6)
    each = [rj.reptile(loss_fn, adam()).compute(params(), None, task) for task in tasks]
    learner = rj.meta_learner(rj.reptile(masked_loss, adam()), optax.sgd(1.0), donate=False)
    mean = lambda *leaves: np.mean(leaves, axis=0)
    expected = jax.tree.map(mean, *(result.gradient for result in each))
    # Another number of steps, in one task or in all, needs copies: the result is the same.
    longer = [tasks[0], rj.Task(repeat(examples(5), STEPS + 1))]
    for given, steps in ((tasks, None), (tasks, STEPS + 2), (longer, None)):
        meta_batch = rj.tasks.stack_tasks(given, steps=steps)
        assert isinstance(meta_batch.support, rj.tasks.Repeated) == (given is tasks and not steps)
        if given is tasks:
            state, _ = learner.step(learner.init(params()), meta_batch)
            moved = jax.tree.map(jnp.subtract, params(), state.params)
            chex.assert_trees_all_close(moved, expected, rtol=1e-11)
    assert meta_batch.support.mask.any(-1).sum(-1).tolist() == [STEPS, STEPS + 1]
    assert rj.tasks.stack_tasks(tasks, steps=jnp.int32(STEPS)).support.steps == STEPS
    with pytest.raises(ValueError, match="steps=2 is too small"):
        rj.tasks.stack_tasks(tasks, steps=2)


# ----------------------------------------------------------------------------------------- memory

PIXELS = np.zeros((5, 64, 64), np.float32)  # 80 KiB


def bright(params, images):
    return jnp.mean((jnp.einsum("bij,ij->b", images, params["w"]) - 1) ** 2)


def needed(function, *arguments):
    """Bytes of a compiled program: what it is given, and what it computes on the way."""
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes


def of_task(sibling, batch_size):
    compute = sibling(bright, optax.sgd(0.1)).compute
    theta = {"w": jnp.zeros((64, 64))}

    def bytes_of(steps):
        batches = minibatches(jax.random.key(0), PIXELS, steps=steps, batch_size=batch_size)
        return needed(compute, theta, None, rj.Task(batches, PIXELS))

    return bytes_of


def of_episodes(batch_size, **sizes):
    """Bytes of a meta step on tasks that are drawn in the program."""
    images = np.zeros((10, 64, 64), np.uint8)
    classes = rj.tasks.ImageClasses(images, np.arange(5) * 2, np.full(5, 2))
    inner = lambda params, batch: bright(params, batch.inputs)
    learner = rj.meta_learner(rj.reptile(inner, optax.sgd(0.1)), optax.sgd(0.1), **sizes)
    state = learner.init({"w": jnp.zeros((64, 64))})

    def bytes_of(steps):
        draws = few_shot(classes, ways=5, shots=1, steps=steps, batch_size=batch_size)
        many = lambda state, key: rj.meta_steps(
            learner, state, draws, key, num_steps=1, meta_batch=4
        )
        return needed(many, state, jax.random.key(0))

    return bytes_of


@pytest.mark.parametrize(
    "bytes_of",
    [
        *(functools.partial(of_task, sibling) for sibling in (rj.reptile, rj.fomaml, rj.maml)),
        functools.partial(of_episodes, tasks_at_once=1),
        functools.partial(of_episodes, tasks_at_once=4),
    ],
    ids=["reptile", "fomaml", "maml", "one task at once", "four tasks at once"],
)
def test_memory_does_not_grow_with_the_steps(bytes_of):
    few, many, copied = bytes_of(None)(10), bytes_of(None)(410), bytes_of(5)(410)
    assert abs(many - few) < 400 * 16  # losses
    assert copied - few > 400 * PIXELS.nbytes


# ----------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3", None, True])
def test_steps_are_checked(steps):
    with pytest.raises((TypeError, ValueError), match=r"steps is (an integer|at least 1)"):
        repeat(examples(5), steps)
    with pytest.raises((TypeError, ValueError), match=r"steps is (an integer|at least 1)"):
        rj.inner_loop(loss_fn, adam(), params(), rj.tasks.Repeated(examples(5), steps))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda learner, state: learner.step(state, rj.Task(repeat(None, 3))), "has no arrays"),
        (
            lambda learner, state: learner.step(
                state, rj.Task(repeat(examples(3, 5), 4), examples(2, 5))
            ),
            r"disagree on their leading axis \[tasks\]",
        ),
        (
            lambda learner, state: rj.weighted_gradients(loss_fn, adam(), [1, 2]).compute(
                params(), None, rj.Task(repeat(examples(5), 3))
            ),
            "2 weights for 3 inner steps",
        ),
        (
            lambda learner, state: rj.foml(loss_fn, adam()).compute(
                params(), None, rj.Task(repeat(examples(5), 1))
            ),
            "foml needs two mini-batches",
        ),
        (
            lambda learner, state: rj.inner_loop(loss_fn, adam(), params(), repeat("ab", 2)),
            "are arrays, but itself is 'ab'",
        ),
    ],
)
def test_what_cannot_be_repeated_is_named(call, message):
    learner = rj.meta_learner(rj.reptile(loss_fn, adam()), optax.sgd(1.0))
    state = learner.init(jax.tree.map(np.float32, params()))
    with pytest.raises((TypeError, ValueError), match=message):
        call(learner, state)


def test_the_last_step_is_split_off():
    head, tail = split_last(repeat(examples(5), 3))
    assert head.steps == 2
    chex.assert_trees_all_equal(tail, examples(5))
