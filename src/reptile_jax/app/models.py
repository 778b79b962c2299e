"""The model to adapt that a command names: a run's, or one that the package brings along."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import reptile_jax as rj
from reptile_jax.app import run_folder
from reptile_jax.app.config import Config, FewShotConfig, SinusoidConfig
from reptile_jax.app.experiments import few_shot, sinusoid


def adaptable(run: Path | str) -> rj.deploy.AdaptableModel:
    """The model of a run's newest checkpoint, for its evaluation's ways, or a pretrained one.

    Args:
      run: the folder of the run; else the name of a pretrained model.

    Raises:
      FileNotFoundError: if it is neither, or the run has no checkpoint.
      ValueError: for a run of another experiment than those of the package; as the checkpoint.
    """
    folder, names = Path(run), rj.deploy.cards()
    if not folder.exists():
        if str(run) in names:
            return rj.pretrained(str(run))
        raise FileNotFoundError(
            f"there is no run {run}: give the folder of a run, or one of {', '.join(names)}."
        )
    config = run_folder.load_config(folder)
    if isinstance(config, FewShotConfig):
        first_state = few_shot.learned_by(config).first_state
    elif isinstance(config, SinusoidConfig):
        first_state = sinusoid.build(config).first_state
    else:
        raise ValueError(f"{folder} is a run of {config.experiment}, which adapts to no task here.")
    state = run_folder.restore(folder, first_state)
    # Committed to no device, as parameters that are drawn: programs are compiled for either.
    state = jax.tree.map(jnp.asarray, jax.device_get(state))
    if isinstance(config, FewShotConfig):
        state = few_shot.for_ways(config.held_out_ways, state)
    facts = {"name": folder.name, "meta steps": int(state.step)}
    model = rj.deploy.from_config(described(config), **facts)
    return dataclasses.replace(model, params=state.params, inner_opt_state=state.inner_opt_state)


def described(config: Config) -> dict[str, Any]:
    """The configuration as the run's config.json has it."""
    return {"experiment": config.experiment, **dataclasses.asdict(config)}
