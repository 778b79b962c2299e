"""A run so small that it can be stopped, killed and compared many times over."""

import dataclasses
import functools
import hashlib
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import reptile_jax as rj
from reptile_jax.app import meta_training, run_folder, signals
from reptile_jax.app.config import SinusoidConfig

CONFIG = SinusoidConfig(
    meta_steps=24, meta_batch=2, steps_per_dispatch=2, save_every=4, give_up_after=7
)


@functools.cache  # one learner compiles once
def learner() -> rj.MetaLearner:
    """Adam inside and outside, with all the state that there can be."""
    loss_fn = rj.nn.squared_error(rj.nn.MLP((4, 1)).apply)
    reptile = rj.reptile(loss_fn, optax.adam(0.02))
    return rj.meta_learner(reptile, optax.adam(0.1), inner_opt_state="average")


def first_state() -> rj.MetaState:
    weights = jnp.linspace(-1, 1, 4)
    layers = {
        "Dense_0": {"kernel": weights[None], "bias": weights},
        "Dense_1": {"kernel": weights[:, None], "bias": jnp.zeros(1)},
    }
    return learner().init({"params": layers})


def new_run(folder: Path, config: SinusoidConfig = CONFIG) -> Path:
    """The folder of a run that has not begun."""
    return run_folder.create(folder, "tiny", config, {})


def restored(folder: Path) -> rj.MetaState:
    return run_folder.restore(folder, first_state)


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
    config: SinusoidConfig = CONFIG,
    on_metrics=None,
    change=lambda learner: learner,
) -> rj.MetaState:
    """Trains from the run's newest state, with the learner as `change` makes it."""
    with jax.numpy_dtype_promotion("standard"):
        return meta_training.meta_train(
            change(learner()),
            run_folder.restore_or_start(folder, first_state),
            rj.tasks.sinusoids(steps=2),
            jax.random.key(1),
            config,
            title="tiny",
            folder=folder,
            on_metrics=on_metrics,
        )


def train_in_a_process(folder: Path, config: SinusoidConfig, programs: Path | None) -> None:
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


def assert_same(one: Path, other: Path) -> None:
    """Two runs have the same state and the same metrics."""
    import chex  # not needed by the processes that are killed

    chex.assert_trees_all_equal(*(restored(folder) for folder in (one, other)))
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def steps_of(file: Path, field: str = "step") -> list:
    """One field of each line of a file of JSON lines."""
    return [json.loads(line)[field] for line in file.read_text().splitlines()]


def at(step: int, act):
    """An `on_metrics` that acts once, at a meta step."""
    done = []

    def on_metrics(_, now, row):
        losses = {"first_loss", "last_loss", "gradient_norm"}
        assert set(row) == {*losses, "tasks_left_out", "failed_in_a_row"}
        if now == step and not done:
            done.append(act())

    return on_metrics


def crash() -> None:
    raise RuntimeError("the power fails")


def handlers() -> list:
    """What handles the signals now."""
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
