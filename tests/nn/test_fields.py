"""The neural field, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from reptile_jax.nn import Field, in_bfloat16


def test_a_field_is_dense_layers_on_fourier_features():
    field = Field(features=3, width=4, layers=3, scale=7.0)
    points = jax.random.uniform(jax.random.key(1), (5, 2))
    params = field.init(jax.random.key(2), points)
    directions = 7 * np.asarray(jax.random.normal(jax.random.key(0), (2, 3)))
    phase = np.asarray(points) @ directions
    x = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    params_of = jax.tree.map(np.asarray, params["params"])
    layers = [params_of[f"Dense_{i}"] for i in range(3)]
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    logits = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    np.testing.assert_allclose(field.apply(params, points), 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_the_directions_are_the_same_in_any_precision_and_with_any_kind_of_keys():
    field, points = Field(width=8, layers=2), jax.random.uniform(jax.random.key(1), (50, 2))
    params = jax.tree.map(lambda leaf: 9 * leaf, field.init(jax.random.key(2), points))
    expected = np.asarray(field.apply(params, points))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(field.apply(params, points), expected)
    half = np.asarray(in_bfloat16(field.apply)(params, points))
    assert np.corrcoef(half.ravel(), expected.ravel())[0, 1] > 0.95


def test_the_papers_field_has_five_layers_of_256():
    params = jax.eval_shape(Field().init, jax.random.key(0), jnp.zeros((1, 2)))
    kernels = [layer["kernel"].shape for layer in params["params"].values()]
    assert kernels == [(512, 256), (256, 256), (256, 256), (256, 256), (256, 1)]
