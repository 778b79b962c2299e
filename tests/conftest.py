"""Strict numerics for every test: nothing is promoted silently, and a warning is an error."""

import os

# Almost all of the suite's time is compilation, and none of its results depend on how hard the
# compiler's last stage tries. Eight devices, for what must not depend on their number. It stands
# before jax is imported, since flags are read once.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_force_host_platform_device_count=8",
    ]
)

import jax
import optax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Double precision, for comparisons that are to hold to more than float32's rounding."""
    with jax.enable_x64(True):
        yield


def outside_strict(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An Optax optimiser exempt from strict dtype promotion, which Optax's own arithmetic fails."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


@pytest.fixture(scope="module")
def programs_kept(tmp_path_factory):
    """For tests that compile the same few programs again and again: here they are kept."""
    kept = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    for name, value in kept.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
