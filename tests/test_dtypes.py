"""Double, half and mixed precision; and what is no parameter, and what to do with it."""

import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import reptile_jax as rj
from tests.app import small_images

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def of(dtype, tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("images", [np.float32, np.float64])
@pytest.mark.parametrize("params", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("network", "shape"),
    [(rj.nn.omniglot_net, (28, 28, 1)), (rj.nn.mini_imagenet_net, (84, 84, 3))],
)
@pytest.mark.usefixtures("x64", "standard_promotion")
def test_the_papers_networks_learn_where_float64_is_enabled(network, shape, params, images):
    model = network(5)
    start = jax.eval_shape(model.init, KEY, jnp.zeros((1, *shape), images))
    assert dtypes(start) == {"float32"}  # as in Flax
    start = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, params), start)
    inner, loss_fn = optax.adam(1e-3, b1=0.0), rj.nn.cross_entropy(model.apply)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.sgd(1.0), inner_opt_state="average")
    inputs = jax.ShapeDtypeStruct((2, 3, 10, *shape), images)
    labels = jax.ShapeDtypeStruct((2, 3, 10), np.int32)
    run = lambda params, batch: learner.step(learner.init(params), rj.Task(batch))
    state, info = jax.eval_shape(run, start, rj.Batch(inputs, labels))
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, start)
    assert dtypes(info.losses) == {str(np.promote_types(params, images))}


@pytest.mark.usefixtures("x64")
def test_a_convolution_takes_the_wider_of_two_precisions():
    model = rj.nn.ConvNet(3, features=4, blocks=2)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    with jax.numpy_dtype_promotion("standard"):
        params = model.init(KEY, images)
        single = model.apply(params, images)
        double = model.apply(of(np.float64, params), np.float64(images))
        mixed = model.apply(of(np.float64, params), images)
        half = model.apply(of(jnp.bfloat16, params), images)
    assert (single.dtype, double.dtype, mixed.dtype) == (np.float32, np.float64, np.float64)
    np.testing.assert_allclose(mixed, double, rtol=1e-5)
    np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(half, double, rtol=0.1, atol=0.1)
    with pytest.raises(TypeError, match="need one floating dtype, got uint8 images"):
        model.apply(params, np.uint8(images))


def test_a_folder_of_images_is_learned_where_float64_is_enabled(tmp_path):
    images = small_images.write(tmp_path / "images")
    command = small_images.train_command(images, "--out", str(tmp_path / "run"))
    command = [sys.executable, "-m", "reptile_jax", *command, "--meta-steps", "2"]
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["scores"]["Reptile"]["transductive"]["mean"][-1] <= 1


def trained(params, meta_learner_of, steps=20):
    learner = meta_learner_of(optax.adam(0.02, b1=0.0), optax.sgd(1.0))
    waves, state = rj.tasks.sinusoids(shots=8, steps=4, batch_size=8), learner.init(params)
    losses = []
    for after, infos in rj.train(learner, state, waves, KEY, until=steps, meta_batch=4):
        losses.append(infos.losses[:, :, -1])
        state = after
    return state, np.concatenate(losses).astype(np.float32)


def sine_network():
    model = rj.nn.MLP((16, 1))
    return model.init(KEY, jnp.zeros((1, 1))), rj.nn.squared_error(model.apply)


@pytest.mark.parametrize("mesh", [None, 2])
@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_parameters_stay_so_and_learn(mesh, tmp_path):
    params, loss_fn = sine_network()
    mesh = mesh and rj.task_mesh(jax.devices()[:mesh])
    learner_of = lambda inner, outer: rj.meta_learner(
        rj.reptile(loss_fn, inner), outer, inner_opt_state="average", mesh=mesh
    )
    state, losses = trained(of(jnp.bfloat16, params), learner_of)
    expected, expected_losses = trained(params, learner_of)
    assert dtypes(state.params) == {"bfloat16"}
    np.testing.assert_allclose(losses[0], expected_losses[0], rtol=0.05)
    np.testing.assert_allclose(losses[10:].mean(), expected_losses[10:].mean(), rtol=0.1)
    moments = jax.tree.map(lambda leaf: leaf.dtype, expected.inner_opt_state[0].count)
    assert moments == state.inner_opt_state[0].count.dtype == np.int32
    rj.checkpoint.save(tmp_path / "checkpoints", state)
    chex.assert_trees_all_equal(rj.checkpoint.restore(tmp_path / "checkpoints", state), state)


WIDENED = {  # whose states take the widest dtype of all the parameters in their first step
    "momo": optax.contrib.momo(),
    "prodigy": optax.contrib.prodigy(),
    "dadapt_adamw": optax.contrib.dadapt_adamw(),
    "dog": optax.contrib.dog(1.0),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(0.01),
    "adam": optax.adam(0.01),
}


@pytest.mark.parametrize("name", WIDENED)
@pytest.mark.usefixtures("standard_promotion")
def test_parameters_of_several_precisions_keep_theirs(name):
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    loss_fn = lambda params, batch: sum(
        jnp.sum((leaf.astype(jnp.float32) - jnp.mean(batch)) ** 2) for leaf in params.values()
    )
    learner = rj.meta_learner(rj.reptile(loss_fn, WIDENED[name]), WIDENED[name], donate=False)
    state = learner.init(params)
    after, _ = learner.step(state, rj.Task(np.zeros((2, 3, 1), np.float32)))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert float(loss_fn(after.params, np.zeros(1))) != float(loss_fn(params, np.zeros(1)))


def test_what_is_no_parameter_is_told_where_to_go():
    learner = rj.meta_learner(rj.reptile(lambda *_: 0.0, optax.sgd(0.1)), optax.sgd(1.0))
    weights = jnp.ones(2)
    for leaf in (np.arange(2), np.array([True]), KEY, 3, True):
        with pytest.raises(TypeError, match="keep what is not learned out"):
            learner.init({"w": weights, "x": leaf})
    for leaf in (jnp.ones(2, jnp.complex64), 1j):
        with pytest.raises(TypeError, match=r"join them by jax\.lax\.complex in the loss"):
            learner.init({"w": weights, "x": leaf})


def test_the_advice_for_complex_parameters_is_right():
    """The steps are those of descent in the plane, which those of a complex gradient are not."""

    def loss_fn(params, batch):
        z = jax.lax.complex(params["re"], params["im"])
        return jnp.mean(jnp.abs(z - batch) ** 2)

    goal = np.full((30, 4), 2 - 3j, np.complex64)
    params = {"re": jnp.zeros(()), "im": jnp.zeros(())}
    adapted = rj.inner_loop(loss_fn, optax.sgd(0.2), params, goal)
    np.testing.assert_allclose(adapted.params["re"], 2, rtol=1e-3)
    np.testing.assert_allclose(adapted.params["im"], -3, rtol=1e-3)
    np.testing.assert_allclose(adapted.losses[0], 13, rtol=1e-5)
