"""The use of fields: what the other initialisations share with the learned one, and the verdict."""

import jax
import numpy as np

from benchmarks.uses import fields
from reptile_jax.app.config import TomographyConfig
from reptile_jax.app.experiments import tomography

PARAMS = {"kernel": jax.numpy.arange(600.0).reshape(20, 30), "bias": jax.numpy.full(30, 2.0)}


def test_matched_weights_have_the_statistics_of_each_array_and_no_more():
    matched = fields.matched(PARAMS, jax.random.key(0))
    np.testing.assert_allclose(matched["kernel"].mean(), 299.5, rtol=0.1)
    np.testing.assert_allclose(matched["kernel"].std(), PARAMS["kernel"].std(), rtol=0.1)
    np.testing.assert_allclose(matched["bias"], 2.0)
    assert len(set(matched["kernel"].reshape(-1).tolist())) > 590


def test_shuffled_weights_are_the_same_in_another_order():
    shuffled = fields.shuffled(PARAMS, jax.random.key(0))["kernel"].reshape(-1)
    np.testing.assert_array_equal(np.sort(shuffled), np.arange(600.0))
    assert (shuffled != np.arange(600.0)).mean() > 0.9


def test_the_verdict_is_paired_by_phantom_and_has_students_interval():
    of_seed = lambda gain: (
        {
            start: {
                name: np.array([10.0, 20.0]) + views
                for name, views in zip(tomography.NAMES, tomography.VIEWS, strict=True)
            }
            for start in ("standard", fields.SMOOTH)
        }
        | {
            "learned": {
                name: np.array([10.0, 20.0]) + 2 * views + gain
                for name, views in zip(tomography.NAMES, tomography.VIEWS, strict=True)
            }
        }
    )
    against, _ = fields._differences([of_seed(gain) for gain in (1.0, 2.0, 3.0)])
    assert against[1:4] == ["+2.0 ± 2.5"] * 3  # 4.303 / √3
    assert against[4] == ""


def test_the_products_of_a_step_are_those_of_the_field():
    workload = fields.workload_of(TomographyConfig(size=8, features=4, width=16))
    kernels = [layer["kernel"].shape for layer in workload.params["params"].values()]
    assert [(layer.fan_in, layer.fan_out) for layer in workload.layers] == kernels
    assert {layer.rows for layer in workload.layers} == {64}
