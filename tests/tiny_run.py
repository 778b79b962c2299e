"""A run so small that it can be stopped, killed and compared many times over."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from reptile_jax import meta_training, presets, runs, signals
from reptile_jax.models import MLP, squared_error
from reptile_jax.sinusoids import sinusoids

CONFIG = presets.Sinusoid(
    meta_steps=24, meta_batch=2, steps_per_dispatch=2, save_every=4, give_up_after=7
)


@functools.cache  # one learner compiles once
def problem() -> runs.Problem:
    """Adam inside and outside, with all the state that there can be."""
    model, inner = MLP((4, 1)), optax.adam(0.02)
    loss_fn = squared_error(model.apply)
    learner = rj.meta_learner(rj.reptile(loss_fn, inner), optax.adam(0.1), inner_state="averaged")
    weights = jnp.linspace(-1, 1, 4)
    layers = {
        "Dense_0": {"kernel": weights[None], "bias": weights},
        "Dense_1": {"kernel": weights[:, None], "bias": jnp.zeros(1)},
    }
    return runs.Problem(model, loss_fn, inner, learner, lambda: learner.init({"params": layers}))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled:
    """Waves of another height."""

    waves: rj.TaskDistribution
    height: jax.Array

    def sample(self, key):
        task = self.waves.sample(key)
        support = task.support._replace(targets=task.support.targets * self.height)
        return task._replace(support=support)


def overflowing(learner: rj.MetaLearner, steps: range) -> rj.MetaLearner:
    """The learner on tasks whose losses overflow in the meta steps that start from `steps`."""

    def step(state, draws):
        bad = (steps.start <= state.step) & (state.step < steps.stop)
        waves = Scaled(draws.distribution, jnp.where(bad, 1e30, 1.0))
        return learner.step(state, draws._replace(distribution=waves))

    return learner._replace(step=step)


def train(
    folder: Path,
    config: presets.Sinusoid = CONFIG,
    on_metrics=None,
    change=lambda learner: learner,
) -> rj.MetaState:
    """Trains from where the run stands, with a changed learner if so wanted."""
    with jax.numpy_dtype_promotion("standard"):
        tiny = problem()
        return meta_training.meta_train(
            folder,
            "tiny",
            change(tiny.learner),
            runs.restore_or_start(folder, tiny),
            sinusoids(steps=2),
            jax.random.key(1),
            config,
            on_metrics,
        )


def train_in_a_process(folder: Path, config: presets.Sinusoid, programs: Path | None) -> None:
    """As `train`, adding a byte to `beats` after every dispatch, before it may be saved.

    Args:
      programs: where compiled programs are kept; None compiles anew.
    """
    if programs is not None:
        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def beat(*_):
        with (folder / "beats").open("ab") as file:
            file.write(b".")

    train(folder, config, beat)


def be_busy(folder: Path) -> None:
    """Ignores the first signal, in a call during which Python's own handlers wait."""
    with signals.handled(lambda _: None, at_once=(folder / "asked").touch):
        (folder / "busy").touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
