"""The simulated products round their operands, once, forward and backward, and nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import reptile_jax as rj
from benchmarks.paper import precision
from reptile_jax.app.config import FewShotConfig
from tests.benchmarks.paper.test_recipes import image_splits


def as_bfloat16(array):
    return np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float64)


def as_tf32(array):
    """Rounds 23 bits of mantissa to 10, to the nearest, of ties to the even one."""
    bits = np.asarray(array, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


ROUNDED = {"tensorfloat32": as_tf32, "bfloat16": as_bfloat16, "float32": np.float64}


@pytest.mark.slow
@pytest.mark.parametrize("kind", precision.KINDS)
def test_operands_are_rounded_forward_and_backward_and_sums_are_not(kind):
    rounded, normal = ROUNDED[kind], jax.random.normal
    a, b, weights = (
        normal(jax.random.key(i), shape) for i, shape in enumerate([(4, 5), (5, 3), (4, 3)])
    )

    @jax.jit
    def product_and_gradients(a, b):
        loss = lambda a, b: (weights * (a @ b)).sum()
        return a @ b, *jax.grad(loss, argnums=(0, 1))(a, b)

    with precision.rounded_products(kind):
        found = product_and_gradients(a, b)
    a, b, weights = map(rounded, (a, b, weights))
    for got, expected in zip(found, (a @ b, weights @ b.T, a.T @ weights), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_convolutions_products_are_rounded_and_later_ones_are_not():
    image, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in ((0, (2, 6, 6, 3)), (1, (3, 3, 3, 4)))
    )
    convolved = jax.jit(
        lambda image, kernel: rj.nn.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    exact = convolved(image, kernel)
    with precision.rounded_products("bfloat16"):
        rounded = convolved(image, kernel)
        assert str(jax.jit(jnp.dot).lower(image[0, 0], kernel[0, 0]).as_text()).count("e8m7") == 2
    of_rounded = convolved(*(jnp.float32(as_bfloat16(operand)) for operand in (image, kernel)))
    np.testing.assert_allclose(rounded, of_rounded, rtol=1e-5, atol=1e-5)
    assert abs(rounded - exact).max() > 1e-3
    np.testing.assert_array_equal(convolved(image, kernel), exact)


@pytest.mark.slow
def test_a_training_is_recorded_with_its_kind_and_found_again(tmp_path, monkeypatch, capsys):
    splits = image_splits(6, 6)
    monkeypatch.setattr(rj.datasets, "load_omniglot", lambda folder: splits)
    monkeypatch.setattr(precision, "set_apart", lambda splits, characters: splits)
    small = dataclasses.replace(FewShotConfig(), size=8, eval_steps=2, steps_per_dispatch=1)
    monkeypatch.setitem(precision.presets.PAPER, "o15", small)
    argv = ["--data", "DIR", "--out", str(tmp_path), "--meta-steps", "2", "--tasks", "3"]
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        assert precision.main([*argv, "--seeds", "1", "--only", "bfloat16"]) == 0
        assert precision.main([*argv, "--seeds", "1", "--only", "float32", "bfloat16"]) == 0
    assert "bfloat16-seed0: measured already" in capsys.readouterr().out
    record = json.loads((tmp_path / "paper" / "precision_o15_2.json").read_text())
    assert record["columns"] == precision.COLUMNS
    assert [row[:2] for row in record["rows"]] == [["float32", "0"], ["bfloat16", "0"]]
    assert [arm["settings"]["operands"] for arm in record["arms"]] == ["bfloat16", "float32"]
    assert record["command"].endswith("--data DIR --meta-steps 2 --tasks 3 --seeds 1")
