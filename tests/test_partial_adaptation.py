"""Parts of the parameters treated differently, through Optax alone, in each of the siblings."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from tests.conftest import outside_strict

RANDOM = np.random.default_rng(0)
TASKS, STEPS, BATCH = 3, 4, 5
BODY, HEAD = RANDOM.normal(size=(3, 2)), RANDOM.normal(size=(2, 1))
INPUTS = RANDOM.normal(size=(TASKS, STEPS + 1, BATCH, 3))
TARGETS = RANDOM.normal(size=(TASKS, STEPS + 1, BATCH, 1))
SIBLINGS = {
    "reptile": rj.reptile,
    "fomaml": rj.fomaml,
    "maml": rj.maml,
    "foml": rj.foml,
    "weighted": lambda *args: rj.weighted_gradients(*args, [-1.0, 0.0, 0.0, 2.0]),
}
# Whether a part that the inner loop leaves alone has a meta-gradient nevertheless.
LEARNED_OUTSIDE = {"reptile": 0, "foml": 0, "fomaml": 1, "maml": 1, "weighted": 1}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]


def loss_fn(params, batch):
    hidden = batch.inputs @ params["body"]
    return jnp.mean((hidden @ params["head"] + params["offset"] - batch.targets) ** 2)


def start():
    return {
        "body": jnp.asarray(BODY),
        "head": jnp.asarray(HEAD),
        "offset": jnp.full((1, 1), 0.1),
    }


def meta_batch():
    data = rj.Batch(jnp.asarray(INPUTS), jnp.asarray(TARGETS))
    take = lambda s: jax.tree.map(lambda leaf: leaf[:, s], data)
    return rj.Task(take(slice(STEPS)), take(STEPS))


def one_task(index=0):
    return jax.tree.map(lambda leaf: leaf[index], meta_batch())


def by_part(**optimizers):
    """The optimiser of each part of the parameters; those not named are left alone."""
    parts = {name: optimizers.get(name, optax.set_to_zero()) for name in start()}
    return outside_strict(optax.partition(parts, {name: name for name in start()}))


def adam(rate):
    return optax.adam(rate, b1=0.0)


@pytest.mark.parametrize(
    ("name", "inner_opt_state"),
    [*((name, "reset") for name in SIBLINGS), ("reptile", "average"), ("reptile", "carry")],
)
def test_with_the_head_alone_adapted_nothing_else_moves_in_the_inner_loop(name, inner_opt_state):
    """ANIL. Reptile, being a difference of parameters, never learns the rest; MAML does."""
    inner = by_part(head=adam(0.1))
    adapted = rj.inner_loop(loss_fn, inner, start(), one_task().support)
    chex.assert_trees_all_equal(adapted.params["body"], start()["body"])
    assert (adapted.params["head"] != HEAD).all()

    learner = rj.meta_learner(
        SIBLINGS[name](loss_fn, inner), optax.sgd(0.1), inner_opt_state=inner_opt_state
    )
    state = learner.init(start())
    for _ in range(2):
        state, info = learner.step(state, meta_batch())
        assert info.finite.all()
    moved = {part: np.any(leaf != start()[part]) for part, leaf in state.params.items()}
    outside = bool(LEARNED_OUTSIDE[name])
    assert moved == {"head": True, "body": outside, "offset": outside}


def test_anils_gradient_goes_through_the_heads_adaptation():
    """MAML, with the head adapted, against a query loss written out without Optax."""
    inner = by_part(head=optax.sgd(0.1))
    task = one_task()

    def query_loss(params):
        head = params["head"]
        for step in range(STEPS):
            batch = jax.tree.map(lambda leaf, step=step: leaf[step], task.support)
            head -= 0.1 * jax.grad(lambda head: loss_fn({**params, "head": head}, batch))(head)  # noqa: B023
        return loss_fn({**params, "head": head}, task.query)

    result = rj.maml(loss_fn, inner).compute(start(), None, task)
    chex.assert_trees_all_close(result.gradient, jax.grad(query_loss)(start()), rtol=1e-12)


def numpy_inner_loop(rates, index):
    """SGD with a rate for each part, gradients by hand."""
    body, head, offset = BODY.copy(), HEAD.copy(), np.full((1, 1), 0.1)
    for x, y in zip(INPUTS[index, :STEPS], TARGETS[index, :STEPS], strict=True):
        residual = 2 * (x @ body @ head + offset - y) / BATCH
        gradients = x.T @ residual @ head.T, (x @ body).T @ residual, residual.sum(keepdims=True)
        body, head, offset = (
            part - rate * gradient
            for part, rate, gradient in zip((body, head, offset), rates, gradients, strict=True)
        )
    return {"body": body, "head": head, "offset": offset}


def test_each_part_has_its_own_inner_rate():
    inner = by_part(body=optax.sgd(0.01), head=optax.sgd(0.05), offset=optax.sgd(0.3))
    adapted = rj.inner_loop(loss_fn, inner, start(), one_task().support)
    expected = numpy_inner_loop((0.01, 0.05, 0.3), 0)
    chex.assert_trees_all_close(adapted.params, expected, rtol=1e-12)
    # All ones is Reptile over the rate: here over each part's own.
    summed = rj.weighted_gradients(loss_fn, inner, [1.0] * STEPS).compute(start(), None, one_task())
    rates = {"body": 0.01, "head": 0.05, "offset": 0.3}
    delta = jax.tree.map(lambda rate, g: rate * g, rates, summed.gradient)
    chex.assert_trees_all_close(
        delta, rj.reptile(loss_fn, inner).compute(start(), None, one_task()).gradient, rtol=1e-10
    )


def test_what_each_task_owns_is_adapted_and_not_meta_learned():
    inner = by_part(body=optax.sgd(0.01), head=optax.sgd(0.05), offset=optax.sgd(0.3))
    outer = by_part(body=optax.sgd(0.5), head=optax.sgd(0.5))
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), outer, donate=False)
    state, _ = learner.step(learner.init(start()), meta_batch())
    ended = [numpy_inner_loop((0.01, 0.05, 0.3), index) for index in range(TASKS)]
    assert all(abs(task["offset"] - 0.1) > 1e-3 for task in ended)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *ended)
    halfway = {name: (np.asarray(leaf) + mean[name]) / 2 for name, leaf in start().items()}
    chex.assert_trees_all_close(state.params, {**halfway, "offset": state.params["offset"]})
    chex.assert_trees_all_equal(state.params["offset"], start()["offset"])


@pytest.mark.parametrize("name", SIBLINGS)
def test_what_the_meta_optimiser_is_to_leave_alone_stays_whatever_its_gradient(name):
    """Adapters on a frozen base, and an offset of each task's own: θ's copies of both are kept."""
    learner = rj.meta_learner(
        SIBLINGS[name](loss_fn, by_part(head=adam(0.1), offset=optax.sgd(0.3))),
        by_part(head=optax.adam(0.1)),
        inner_opt_state="average",
    )
    state = learner.init(start())
    for _ in range(2):
        state, _ = learner.step(state, meta_batch())
    kept = {name: state.params[name] for name in ("body", "offset")}
    chex.assert_trees_all_equal(kept, {name: start()[name] for name in kept})
    assert (state.params["head"] != HEAD).all()
