"""The library computes the right values on this device, by the check that the GPU suite makes."""

import pytest

import reptile_jax as rj
from benchmarks.speed import correctness

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


@pytest.mark.parametrize("precision", ["highest", None])
def test_gradients_are_right_on_this_device(precision):
    error = correctness.convolution_error(2, precision)
    assert 1e-9 < error < correctness.TOLERANCES["float32" if precision else "bfloat16"]


def test_the_meta_step_agrees_with_its_double_precision_reference():
    net = rj.nn.ConvNet(3, features=4, pool=True, blocks=1)
    assert correctness.meta_step_error(net, 7, 2, "highest") < 1e-5
