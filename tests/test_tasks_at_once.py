"""The number of tasks side by side is the platform's, and changes no result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import reptile_jax as rj
from reptile_jax._tasks_at_once import by_platform

TASKS = 6
LOSS = rj.nn.squared_error(lambda params, x: jnp.tanh(x @ params["w"]))
WAVES = rj.tasks.sinusoids(steps=3, batch_size=4)


@pytest.fixture
def compile_for(monkeypatch):
    def choose(platform):
        pick = lambda *args, default, **branches: branches.get(platform, default)(*args)
        monkeypatch.setattr(lax, "platform_dependent", pick)

    return choose


@pytest.mark.parametrize(
    ("params", "batch", "number", "on_tpu"),
    [
        (113_221, (10, 28, 28, 1), 64, 16),  # the paper's networks: the best of the estimates
        (34_661, (10, 84, 84, 3), 64, 1),
        (128_836, (20, 28, 28, 1), 64, 16),
        (113_221, (10, 28, 28, 1), 5, 5),  # no more than there are
        (10**9, (1, 8), 4, 1),  # one at least
    ],
)
def test_the_platforms_number(compile_for, params, batch, number, on_tpu):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    for platform, expected in {"cpu": 1, "cuda": number, "tpu": on_tpu}.items():
        compile_for(platform)
        run = by_platform(lambda at_once: at_once, number, shape(params), shape(5, *batch))
        assert run() == expected


def test_every_step_of_a_repeated_support_takes_all_of_it(compile_for):
    compile_for("tpu")
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    number = lambda support: by_platform(lambda at_once: at_once, 64, shape(100), support)()
    pictures = 50, 28, 28, 1
    assert number(rj.tasks.Repeated(shape(*pictures), 3)) == number(shape(3, *pictures))
    assert number(rj.tasks.Repeated(shape(*pictures), 3)) != number(shape(*pictures))


def meta_step(platform, compile_for, **how):
    compile_for(platform)
    gradient = rj.reptile(LOSS, optax.sgd(0.1, momentum=0.9))
    learner = rj.meta_learner(gradient, optax.sgd(0.5), inner_opt_state="average", **how)
    state = learner.init({"w": jnp.full((1, 1), 0.3)})
    return rj.meta_steps(learner, state, WAVES, jax.random.key(0), num_steps=2, meta_batch=TASKS)


def test_a_meta_step_is_the_same_on_every_platform(compile_for):
    one_by_one = meta_step("cpu", compile_for, tasks_at_once=1)
    for platform in ("cpu", "cuda", "tpu"):
        found = meta_step(platform, compile_for)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, one_by_one)


def test_an_evaluation_is_the_same_on_every_platform(compile_for):
    def scores(platform):
        compile_for(platform)
        error = lambda params, task: LOSS(params, task.query)
        momentum, theta = optax.sgd(0.1, momentum=0.9), {"w": jnp.full((1, 1), 0.3)}
        return rj.evaluate(
            LOSS, error, momentum, theta, WAVES, jax.random.key(1), num_tasks=5
        ).scores

    for platform in ("cuda", "tpu"):
        np.testing.assert_allclose(scores(platform), scores("cpu"), rtol=1e-5)


def test_the_program_decides_and_not_the_machine_that_traces_it():
    learner = rj.meta_learner(rj.reptile(LOSS, optax.sgd(0.1)), optax.sgd(0.5))
    state = learner.init({"w": jnp.ones((1, 1))})
    tasks = jax.vmap(WAVES.sample)(jax.random.split(jax.random.key(0), 7))
    traced = jax.jit(learner.step).trace(state, tasks)
    # On a GPU, weights led by seven tasks.
    for platform, side_by_side in {"cpu": False, "cuda": True}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("tensor<7x1x1xf32>" in text) == side_by_side
