"""The benchmarks count the work of a meta step right."""

import numpy as np
import pytest

from benchmarks.speed import arms, workloads

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


def test_the_work_of_the_papers_meta_step_is_counted_right():
    """3.93 GFLOP for five tasks of five steps, counted layer by layer."""
    workload = workloads.few_shot("o15")
    assert [layer.rows for layer in workload.layers] == [1960, 490, 160, 40, 10]
    assert [layer.fan_in for layer in workload.layers] == [9, 576, 576, 576, 256]
    np.testing.assert_allclose(5 * workload.flops, 3.93e9, rtol=0.01)


@pytest.mark.parametrize("at_once", [1, 2])
def test_bare_products_feed_the_weights(at_once):
    layers = (workloads.Layer(4, 3, 2), workloads.Layer(4, 2, 3))
    workload = workloads.Workload("", None, None, None, None, "reset", layers)
    object.__setattr__(workload, "distribution", type("", (), {"steps": 2}))
    weights = arms.bare_products(workload, 3, at_once)()
    assert [w.shape[-2:] for w in weights] == [(3, 2), (2, 3)]
    assert all(w.shape[:-2] == ((2,) if at_once == 2 else ()) for w in weights)
    assert all(np.isfinite(w).all() for w in weights)
