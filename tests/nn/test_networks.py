"""The paper's networks: sizes, starts, and what their batch norm looks at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax import nn


@pytest.mark.parametrize(
    ("net", "shape", "parameters"),
    [
        (nn.omniglot_net(5), (28, 28, 1), 113_221),
        (nn.omniglot_net(20), (28, 28, 1), 117_076),
        (nn.mini_imagenet_net(5), (84, 84, 3), 34_661),
    ],
)
def test_the_networks_have_the_papers_parameters(net, shape, parameters):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert jax.eval_shape(net.apply, params, images).shape == (2, net.ways)


def test_kernels_start_glorot_uniform_and_biases_at_zero():
    net = nn.omniglot_net(5)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    kernel = np.asarray(params["Conv_1"]["kernel"])
    bound = np.sqrt(6 / (2 * 9 * 64))
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
    assert not np.asarray(params["Conv_1"]["bias"]).any()


def test_the_classifier_is_marked_and_may_start_at_zero():
    net = nn.omniglot_net(5).clone(classifier_init=jax.nn.initializers.zeros)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    marked = nn.classifier_mask(params)
    kernels = jax.tree.map(lambda mark, leaf: leaf.shape if mark else None, marked, params)
    assert jax.tree.leaves(kernels) == [5, 256, 5]  # the bias's shape, and the kernel's
    assert not params["params"]["Dense_0"]["kernel"].any()
    assert params["params"]["Conv_0"]["kernel"].all()


def test_a_block_is_convolution_norm_pool_and_relu_in_the_papers_order():
    images = jax.random.uniform(jax.random.key(1), (3, 7, 7, 3))
    net = nn.ConvNet(ways=4, features=6, pool=True, blocks=1)
    params = jax.jit(net.init)(jax.random.key(0), images)
    block = params["params"]
    block["Conv_0"]["bias"] = jax.random.normal(jax.random.key(2), (6,))
    with jax.numpy_rank_promotion("allow"):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, block["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=layout
        )
        x = x + block["Conv_0"]["bias"]
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3)
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
        x = np.maximum(x.reshape(3, 4, 2, 4, 2, 6).max((2, 4)), 0)
        expected = x.reshape(3, -1) @ block["Dense_0"]["kernel"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, images), expected, atol=1e-4)


def test_the_bias_that_batch_norm_takes_out_does_not_move():
    net = nn.ConvNet(ways=2, features=3, blocks=2)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(0), images)
    loss_fn = nn.cross_entropy(net.apply)
    gradient = jax.jit(jax.grad(loss_fn))(params, rj.Batch(images, jnp.array([0, 1])))["params"]
    for layer in ("Conv_0", "Conv_1"):
        assert not gradient[layer]["bias"].any()
        assert gradient[layer]["kernel"].any()


def test_batch_norm_looks_at_the_batch_and_at_nothing_else():
    net = nn.omniglot_net(5)
    images = jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    params = jax.jit(net.init)(jax.random.key(0), images)
    apply = jax.jit(net.apply)
    np.testing.assert_array_equal(apply(params, images), apply(params, images))
    other = images.at[3].set(0.0)
    assert np.abs(apply(params, other)[0] - apply(params, images)[0]).max() > 1e-3


def test_the_mlp_starts_uniform_in_one_over_root_fan_in():
    params = nn.MLP((64, 64, 1)).init(jax.random.key(0), jnp.zeros((1, 1)))["params"]
    for layer, fan_in in (("Dense_0", 1), ("Dense_1", 64), ("Dense_2", 64)):
        for leaf in params[layer].values():
            assert np.abs(leaf).max() <= fan_in**-0.5
    for leaf in params["Dense_1"].values():
        assert np.abs(leaf).max() > 0.9 * 64**-0.5
