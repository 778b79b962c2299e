"""Strict numerics for every test: nothing is promoted silently, and a warning is an error."""

import os
import signal
from importlib import metadata
from pathlib import Path

# Almost all of the suite's time is compilation, and no result depends on how hard the compiler's
# last stage tries. jaxlib 0.10 still has the older emitters of fused loops, which take half of the
# time; a flag that JAX does not know ends the process. Eight devices, for what must not depend on
# their number. JAX reads the flags once, when it is imported. A GPU that JAX_PLATFORMS asks for
# keeps its own.
if os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu"):
    has_older_emitters = metadata.version("jaxlib").startswith("0.10.")
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_use_fusion_emitters=false" if has_older_emitters else "",
            "--xla_cpu_parallel_codegen_split_count=1",
            "--xla_force_host_platform_device_count=8",
        ]
    )

import jax
import optax
import pytest

# Under `nohup` a hang-up would be ignored, here and in the processes that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of this session's processes together."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True, scope="session")
def kept_programs(shared_folder):
    """Compiled programs are kept: half of them are compiled again, here or in another process."""
    jax.config.update("jax_compilation_cache_dir", str(shared_folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture
def x64():
    """Double precision, for comparisons closer than float32's rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets compiled programs in time: Linux allows a process 65,530 pieces of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


def outside_strict(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An Optax optimiser exempt from strict dtype promotion, which Optax's own arithmetic fails."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def pytest_terminal_summary(terminalreporter):
    """What `tests/app/test_attack.py` counted, of all processes."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    ended = [report for report in reports if getattr(report, "when", None) == "call"]
    properties = [entry for report in ended for entry in report.user_properties]
    rows = [counted for name, counted in properties if name == "attack"]
    if not rows:
        return
    sums = {name: sum(row[name] for row in rows) for name in ("resumed", "refused")}
    terminalreporter.section("damages of a run's files")
    columns = "{:<10}{:<26}{:>9}{:>9}{:>9}".format
    terminalreporter.line(columns("run", "damage", "tried", "resumed", "refused"))
    for row in (*rows, {"run": "all", "damage": "", **sums}):
        figures = row["resumed"], row["refused"]
        terminalreporter.line(columns(row["run"], row["damage"], sum(figures), *figures))
