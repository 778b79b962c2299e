"""The formulations that the benchmarks compare are the same convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed import convolutions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 6)])
def test_every_formulation_is_the_same_convolution(stride, size):
    """One step of gradient descent for two tasks under vmap, in image and kernel."""
    keys = jax.random.split(jax.random.key(0), 2)
    kernel = jax.random.normal(keys[0], (2, 3, 3, 2, 3))
    image = jax.random.normal(keys[1], (2, 2, size, size, 2))

    def gradients(way, axis=jax.vmap):
        loss = lambda kernel, image: jnp.sum(jnp.sin(way(image, kernel, stride)))
        return axis(jax.grad(loss, (0, 1)))(kernel, image)

    ways = ("ours", "canonical", "batch_groups", "shifted_slices", "nine_products", "native")

    @jax.jit
    def run():
        found = {way: gradients(getattr(convolutions, way)) for way in ways}
        return {**found, "in a loop": gradients(convolutions.ours, convolutions.one_after_another)}

    found = run()
    right = found.pop("native")
    for way, both in found.items():
        for a, b in zip(both, right, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=way)


def test_batch_groups_are_in_the_program():
    """`vmap(grad)` of the native one has feature groups, of this one batch groups."""
    image, kernel = jnp.ones((2, 1, 4, 4, 2)), jnp.ones((2, 3, 3, 2, 2))

    def lowered(way):
        loss = lambda kernel, image: jnp.sum(jnp.sin(way(image, kernel, 1)))
        return jax.jit(jax.vmap(jax.grad(loss))).lower(kernel, image).as_text()

    assert "batch_group_count = 2" in lowered(convolutions.batch_groups)
    assert "batch_group_count = 2" not in lowered(convolutions.native)
