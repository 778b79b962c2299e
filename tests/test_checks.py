"""What is wrong with an argument is said by the library itself, before anything is compiled.

None of the errors comes from inside JAX, NumPy or Optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reptile_jax as rj
from reptile_jax._types import Draws
from reptile_jax.tasks import sinusoids
from tests.nonsense import KEY, answered, fuzz, mostly


def loss_fn(params, batch):
    inputs, targets = batch
    difference = inputs.astype(jnp.float32) * params["w"].astype(jnp.float32).sum() - targets
    return jnp.mean(difference.astype(jnp.float32) ** 2)


SUPPORT, QUERY = (jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4))), (jnp.ones((3, 4)), jnp.ones((3, 4)))
LEAVES = st.sampled_from(
    [jnp.ones((3, 2, 4), dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, bool)]
    + [jnp.ones(shape) for shape in ((3, 2, 0), (3, 0, 4), (0, 2, 4), (2, 2, 4), (3,), ())]
    + [jnp.full((3, 2, 4), jnp.nan)]
)
PARAMS = st.sampled_from(
    [{"w": jnp.ones(2, dtype)} for dtype in (jnp.float32, jnp.float16, jnp.int32, jnp.complex64)]
    + [{}, None, {"w": "x"}, {"w": np.array(["a"])}, {"w": np.ones(0, np.float32)}, 3]
)
LOSSES = st.sampled_from(
    [
        *(loss_fn, loss_fn, lambda p, b: None, lambda p, b: (loss_fn(p, b), 1)),
        *(lambda p, b: p["w"], lambda p, b: jnp.int32(3), None),
    ]
)
OPTIMIZERS = st.sampled_from(
    [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.noisy_sgd(0.1, key=KEY), optax.sgd, None]
)
TASKS = st.one_of(
    st.builds(lambda x, y: rj.Task((x, y), QUERY), LEAVES, LEAVES),
    st.builds(lambda weight: rj.Task(SUPPORT, QUERY, weight), LEAVES),
    st.sampled_from(
        [
            *(rj.Task(SUPPORT), rj.Task(None), rj.Task("ab"), SUPPORT, None),
            Draws(sinusoids(), jax.random.split(KEY, 3)),
        ]
    ),
)
SIBLINGS = st.sampled_from(
    [rj.reptile, rj.fomaml, rj.maml, rj.foml, lambda f, o: rj.weighted_gradients(f, o, "ab")]
)


@fuzz
@given(
    LOSSES,
    OPTIMIZERS,
    PARAMS,
    LEAVES.map(lambda leaf: (leaf, leaf))
    | st.sampled_from([(jnp.ones((3, 2)), jnp.ones((2, 2))), None, "ab", 3]),
)
def test_an_inner_loop_of_anything(loss_fn, optimizer, params, batches):
    with jax.numpy_dtype_promotion("standard"), answered():
        adapted = jax.eval_shape(lambda: rj.inner_loop(loss_fn, optimizer, params, batches))
        assert jax.tree.structure(adapted.params) == jax.tree.structure(params)


@fuzz
@given(
    SIBLINGS,
    LOSSES,
    OPTIMIZERS,
    OPTIMIZERS,
    PARAMS,
    TASKS,
    mostly(inner_opt_state="average", tasks_at_once=2, mesh=None),
)
def test_a_meta_step_of_anything(sibling, loss_fn, inner, outer, params, tasks, options):
    with jax.numpy_dtype_promotion("standard"), answered():
        learner = rj.meta_learner(sibling(loss_fn, inner), outer, **options)
        state = learner.init(params)
        after, _ = jax.eval_shape(learner.step, state, tasks)
        assert jax.tree.structure(after) == jax.tree.structure(state)


@fuzz
@given(mostly(state=None, inner_opt_state="reset", tasks_at_once=1, mesh=None))
def test_a_meta_step_without_a_learner(arguments):
    meta_gradient, outer = rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(0.1)
    if arguments["state"] is None:
        arguments["state"] = rj.meta_learner(meta_gradient, outer).init({"w": jnp.ones(2)})
    with answered():
        rj.meta_step(meta_gradient, outer, tasks=rj.Task(SUPPORT), **arguments)


def learner_and_state():
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(0.1))
    return learner, learner.init({"w": jnp.ones(2)})


@fuzz
@given(mostly(key=KEY, until=0, meta_batch=1, steps_per_dispatch=1, learner=None, state=None))
def test_training_with_anything(arguments):
    learner, state = learner_and_state()
    if arguments["learner"] is None:
        arguments["learner"] = learner
    if arguments["state"] is None:
        arguments["state"] = state
    with answered():
        rj.train(distribution=sinusoids(), **arguments)


@pytest.mark.parametrize(
    ("nonsense", "message"),
    [
        ({"distribution": None}, "a task distribution has a method sample"),
        ({"key": jax.random.split(KEY, 3)}, "a key is made by jax.random.key"),
        ({"key": jnp.arange(3)}, "a key is made by jax.random.key"),
        ({"meta_batch": 0}, "meta_batch is at least 1, got 0"),
        ({"meta_batch": 2.5}, "meta_batch is an integer, got 2.5"),
        (
            {"state": {"w": jnp.ones(2)}},
            r"the state is what learner.init\(params\) gives, got dict",
        ),
    ],
)
def test_meta_steps_with_nonsense(nonsense, message):
    learner, state = learner_and_state()
    arguments = {"state": state, "distribution": sinusoids(), "key": KEY, "meta_batch": 1}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        rj.meta_steps(learner, num_steps=1, **arguments | nonsense)
    with answered():
        raise caught.value


@pytest.mark.parametrize(
    "nonsense",
    [
        {"key": 0},
        {"num_tasks": 2.5},
        {"score_fn": None},
        {"report": 3},
        {"loss_fn": 3},
        {"optimizer": 0.1},
        {"params": {"w": 1}},
        {"tasks": None},
        {"opt_state": {"count": 3}},
        {"mesh": 3},
    ],
)
def test_evaluating_with_nonsense(nonsense):
    arguments = {
        "loss_fn": loss_fn,
        "score_fn": lambda params, task: 0.0,
        "optimizer": optax.sgd(0.1),
        "params": {"w": jnp.ones(2)},
        "tasks": sinusoids(),
        "key": KEY,
        "num_tasks": 2,
    }
    with pytest.raises((TypeError, ValueError)) as caught:
        rj.evaluate(**arguments | nonsense)
    with answered():
        raise caught.value


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (rj.Task(SUPPORT, weight=jnp.ones((3, 2))), r"one for each task, \[3\], got \[3, 2\]"),
        (rj.Task("ab"), r"leaves of the meta-batch are arrays, but \.support is 'ab'"),
    ],
)
def test_what_is_no_meta_batch_is_named(task, message):
    _, state = learner_and_state()
    with pytest.raises((TypeError, ValueError), match=message):
        rj.meta_step(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(0.1), state, task)
