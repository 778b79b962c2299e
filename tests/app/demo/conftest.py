"""The demo computes in threads of its server, where a context of this one has no effect."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def promotion_of_a_person_everywhere():
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)
