"""What the tests of the benchmarks share."""

import jax
import pytest


@pytest.fixture
def relaxed():
    """The arithmetic of Optax, and of code as users write it, may promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
