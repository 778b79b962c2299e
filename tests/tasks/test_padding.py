"""Tasks of unequal size, stacked with padding, against each task alone and unpadded."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from tests.conftest import outside_strict

SIZES = [(2, 3, 4), (4, 1, 2), (1, 5, 3)]  # steps, batch, query of each task
WEIGHTS = (0.4, 2.0, 1.0)
GRADIENT_WEIGHTS = (0.3, -1.0, 0.5, 2.0)

INNER = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: outside_strict(optax.sgd(0.1, momentum=0.9)),
    "adam": lambda: outside_strict(optax.adamw(0.05, b1=0.5, b2=0.9, weight_decay=0.1)),
}
SIBLINGS = {"reptile": rj.reptile, "fomaml": rj.fomaml, "maml": rj.maml, "foml": rj.foml}


def example_loss(params, batch):
    hidden = jnp.tanh(batch.inputs @ params["w1"])
    # A norm, whose derivative at 0 is not finite: padding with zeros alone would be found out.
    return jnp.sqrt(jnp.sum((hidden @ params["w2"] - batch.targets) ** 2, -1))


loss_fn = rj.tasks.masked_mean(example_loss)


def plain_loss(params, batch):
    return jnp.mean(example_loss(params, batch))


def params():
    rng = np.random.default_rng(0)
    return {"w1": jnp.asarray(rng.normal(size=(2, 4))), "w2": jnp.asarray(rng.normal(size=(4, 1)))}


def unequal_tasks(weights=WEIGHTS):
    rng = np.random.default_rng(1)

    def batch(*shape):
        inputs = rng.normal(size=(*shape, 2))
        return rj.Batch(inputs, np.sin(2 * inputs[..., :1]) + 1)

    return [
        rj.Task(batch(steps, size), batch(query), weight)
        for (steps, size, query), weight in zip(SIZES, weights, strict=True)
    ]


def poisoned(masked):
    """The same, with NaN wherever the mask is false."""

    def poison(leaf):
        real = masked.mask.reshape(masked.mask.shape + (1,) * (leaf.ndim - masked.mask.ndim))
        return np.where(real, leaf, np.nan)

    return masked._replace(examples=jax.tree.map(poison, masked.examples))


def without_query(tasks):
    return [task._replace(query=None) for task in tasks]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "inner", "at_once"),
    [
        ("reptile", "sgd", 1),
        ("reptile", "adam", 2),
        ("fomaml", "momentum", 3),
        ("maml", "momentum", 1),
        ("maml", "adam", 3),
        ("foml", "adam", 2),
    ],
)
def test_padded_tasks_give_what_each_gives_alone(name, inner, at_once):
    tasks = unequal_tasks() if name != "foml" else without_query(unequal_tasks())[:2]
    alone = SIBLINGS[name](plain_loss, INNER[inner]())
    each = [jax.jit(alone.compute)(params(), None, task) for task in tasks]
    mean = lambda *gradients: np.average(gradients, axis=0, weights=WEIGHTS[: len(tasks)])

    expected = jax.tree.map(mean, *(result.gradient for result in each))

    learner = rj.meta_learner(
        SIBLINGS[name](loss_fn, INNER[inner]()), optax.sgd(1.0), tasks_at_once=at_once
    )
    stacked = rj.tasks.stack_tasks(tasks)
    queries = None if name == "foml" else poisoned(stacked.query)
    for padded in (stacked, rj.Task(poisoned(stacked.support), queries, stacked.weight)):
        state, info = learner.step(learner.init(params()), padded)
        moved = jax.tree.map(jnp.subtract, params(), state.params)
        chex.assert_trees_all_close(moved, expected, rtol=1e-11)
        assert info.finite.all()
        for losses, result in zip(np.asarray(info.losses), each, strict=True):
            skipped = len(losses) - len(result.losses)
            np.testing.assert_array_equal(losses[:skipped], 0)
            np.testing.assert_allclose(losses[skipped:], result.losses, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_weights_of_inner_gradients_belong_to_the_last_steps():
    inner, longest = INNER["adam"](), max(steps for steps, *_ in SIZES)
    weights = GRADIENT_WEIGHTS[:longest]
    stacked = rj.tasks.stack_tasks(without_query(unequal_tasks((1, 1, 1))))
    learner = rj.meta_learner(rj.weighted_gradients(loss_fn, inner, weights), optax.sgd(1.0))
    state, _ = learner.step(learner.init(params()), stacked)
    each = [
        jax.jit(rj.weighted_gradients(plain_loss, inner, weights[-steps:]).compute)(
            params(), None, task
        )
        for task, (steps, *_) in zip(unequal_tasks(), SIZES, strict=True)
    ]
    expected = jax.tree.map(lambda *g: np.mean(g, axis=0), *(result.gradient for result in each))
    moved = jax.tree.map(jnp.subtract, params(), state.params)
    chex.assert_trees_all_close(moved, expected, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("at_once", [1, 3])
def test_averaged_states_count_the_mean_number_of_steps(at_once):
    inner, tasks = INNER["adam"](), unequal_tasks()
    learner = rj.meta_learner(
        rj.reptile(loss_fn, inner), optax.sgd(1.0), inner_opt_state="average", tasks_at_once=at_once
    )
    state = learner.init(params())
    start, opt_state = params(), inner.init(params())
    adapt = jax.jit(rj.reptile(plain_loss, inner).compute)
    for step in (1, 2):
        state, _ = learner.step(state, rj.tasks.stack_tasks(tasks))
        each = [adapt(start, opt_state, task) for task in tasks]
        mean = lambda *leaves: np.average(leaves, axis=0, weights=WEIGHTS)
        start = jax.tree.map(
            jnp.subtract, start, jax.tree.map(mean, *(result.gradient for result in each))
        )
        opt_state = jax.tree.map(mean, *(result.opt_state for result in each))
        count = jnp.int32(3 * step)  # (0.4 * 2 + 2 * 4 + 1 * 1) / 3.4 = 2.88 steps, rounded
        opt_state = (opt_state[0]._replace(count=count), *opt_state[1:])
        chex.assert_trees_all_close(state.params, start, rtol=1e-11)
        chex.assert_trees_all_close(state.inner_opt_state, opt_state, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_a_carried_state_passes_padding_untouched():
    inner = INNER["adam"]()
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(1.0), inner_opt_state="carry")
    state, _ = learner.step(learner.init(params()), rj.tasks.stack_tasks(unequal_tasks()))
    opt_state = inner.init(params())
    for task in unequal_tasks():
        opt_state = rj.inner_loop(plain_loss, inner, params(), task.support, opt_state).opt_state
    chex.assert_trees_all_close(state.inner_opt_state, opt_state, rtol=1e-11)


def test_mini_batches_of_unequal_size_make_a_support_set():
    examples = np.arange(7.0, dtype=np.float32)
    support = rj.tasks.stack_batches([examples[:3], examples[3:6], examples[6:]], batch=4)
    assert support.mask.tolist() == [[True] * 3 + [False]] * 2 + [[True] + [False] * 3]
    np.testing.assert_array_equal(support.examples[support.mask], examples)
    stacked = rj.tasks.stack_tasks([rj.Task(support), rj.Task(examples.reshape(7, 1))])
    assert stacked.support.mask.shape == (2, 7, 4)
    np.testing.assert_array_equal(stacked.support.mask[0, 4:], support.mask)
    np.testing.assert_array_equal(stacked.support.examples[1, :, 0], examples)
    assert stacked.weight is None


def test_sizes_given_are_the_shapes_whatever_the_tasks():
    first, second = (
        rj.tasks.stack_tasks([t], steps=5, batch=6, query=7) for t in unequal_tasks()[:2]
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
    assert first.support.mask.shape == (1, 5, 6)
    assert first.query.mask.shape == (1, 7)


def test_batches_without_a_mask_pay_nothing():
    task = jax.tree.map(np.float32, unequal_tasks()[0])
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params())
    loop = lambda batches: rj.inner_loop(loss_fn, optax.sgd(0.1), theta, batches)
    plain = str(jax.make_jaxpr(loop)(task.support))
    assert not {"cond", "select_n", "gather"} & set(plain.replace("[", " ").split())
    masked = rj.tasks.Masked(task.support, np.ones((2, 3), bool))
    assert "cond" in str(jax.make_jaxpr(loop)(masked))


TASK = rj.Task(np.zeros((2, 3, 1)), np.zeros((4, 1)))


@pytest.mark.parametrize(
    ("tasks", "sizes", "message"),
    [
        ([], {}, "at least one task, got none"),
        ([TASK, TASK._replace(query=None)], {}, "some tasks have a query set and some have none"),
        ([TASK._replace(support=np.zeros(2))], {}, r"has no leading axis \[batch\].*are scalars"),
        ([TASK._replace(support=np.zeros((2, 0)))], {}, r"leading axis \[batch\] of 0"),
        ([rj.Task(None)], {}, "a task's support set has no arrays"),
        ([TASK], {"steps": 1}, "steps=1 is too small: the largest of the supports has 2"),
        ([TASK], {"query": 3}, "query=3 is too small"),
        (
            [TASK, TASK._replace(support=np.zeros((2, 3, 2)))],
            {},
            r"the supports differ in more than their sizes: an example of number 1 is .*\[2\], ",
        ),
        ([TASK, TASK._replace(support={"x": np.zeros((2, 3, 1))})], {}, "differ in more than"),
        (
            [TASK._replace(support=rj.tasks.Masked(np.zeros((2, 3)), np.ones((2, 3))))],
            {},
            "a mask is bool .*float64",
        ),
    ],
)
def test_tasks_that_cannot_be_stacked_are_named(tasks, sizes, message):
    with pytest.raises(ValueError, match=message):
        rj.tasks.stack_tasks(tasks, **sizes)


def test_what_else_is_not_a_task_or_a_loss_per_example_is_named():
    with pytest.raises(TypeError, match=r"takes Task\(support, query\), got dict"):
        rj.tasks.stack_tasks([{"support": 1}])
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda task: rj.tasks.stack_tasks([task]))(TASK)
    with pytest.raises(TypeError, match="random keys, which NumPy cannot store"):
        rj.tasks.stack_tasks([TASK._replace(query=jax.random.split(jax.random.key(0), 4))])
    for sizes in ({"steps": "3"}, {"batch": 3.5}):
        with pytest.raises(TypeError, match="is an integer"):
            rj.tasks.stack_tasks([TASK], **sizes)
    assert rj.tasks.stack_tasks(task for task in [TASK, TASK]).support.mask.shape == (2, 2, 3)
    with pytest.raises(ValueError, match="at least one mini-batch"):
        rj.tasks.stack_batches([])
    with pytest.raises(ValueError, match=r"\[3\] numbers for 3 examples, but gave shape \(\)"):
        rj.tasks.masked_mean(lambda params, examples: jnp.mean(examples))(None, jnp.zeros(3))
