"""The experiments, one file each, and the table of them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from reptile_jax.app import presets
from reptile_jax.app.config import (
    ClientsConfig,
    Config,
    EquationsConfig,
    SinusoidConfig,
    TomographyConfig,
)
from reptile_jax.app.experiment import Experiment
from reptile_jax.app.experiments import clients, equations, few_shot, sinusoid, tomography


class Entry(NamedTuple):
    """An experiment: the configuration it starts from, what builds it, and what draws its tasks.

    `build(config, mesh)`, or, where it reads a data set, `build(config, mesh, folder)`; and
    `build(config, mesh, folder, run)` to score a run, if it can be scored on other data as well.
    `draw(path, steps, shown)` writes a PNG of a few held-out tasks: `steps` [points] are the inner
    steps taken, `shown` has for each initialisation the arrays of `Experiment.show_fn` by name, led
    by [tasks, points].
    """

    start: Config
    build: Callable[..., Experiment]
    needs_data: bool = False
    takes_other_data: bool = False
    draw: Callable[[Path, np.ndarray, Mapping[str, Mapping[str, np.ndarray]]], None] | None = None


# By the name that follows `train` and that `Config.experiment` gives.
EXPERIMENTS: dict[str, Entry] = {
    "sinusoid": Entry(SinusoidConfig(), sinusoid.build, draw=sinusoid.draw),
    "burgers": Entry(EquationsConfig(), equations.build, draw=equations.draw),
    "heat": Entry(
        EquationsConfig(equation="heat", viscosity=(0.05, 0.2)),
        equations.build,
        draw=equations.draw,
    ),
    "ct": Entry(TomographyConfig(), tomography.build, draw=tomography.draw),
    "clients": Entry(ClientsConfig(), clients.build, True, draw=clients.draw),
    "omniglot": Entry(presets.PAPER["o15"], few_shot.build, True, True, few_shot.draw),
    "mini-imagenet": Entry(presets.PAPER["m15"], few_shot.build, True, True, few_shot.draw),
    "images": Entry(
        dataclasses.replace(presets.PAPER["m15"], dataset="images"),
        few_shot.build,
        True,
        True,
        few_shot.draw,
    ),
}


def build(
    config: Config, data: Path | None = None, mesh: Mesh | None = None, run: Path | None = None
) -> Experiment:
    """Builds the experiment that a configuration stands for.

    Args:
      data: the folder of the data set, for those that read one.
      mesh: the devices that share its tasks.
      run: the folder of a run that is only to be scored, perhaps on other data than its own.

    Raises:
      ValueError: for data that is missing or not needed, and as the experiment's own function.
    """
    entry = EXPERIMENTS[config.experiment]
    if entry.needs_data != (data is not None):
        cure = "give the data set's folder with" if entry.needs_data else "it takes no"
        raise ValueError(f"this is a run of {config.experiment}: {cure} --data.")
    given: tuple[Any, ...] = (config, mesh) if data is None else (config, mesh, data)
    return entry.build(*given, *([run] if run is not None and entry.takes_other_data else []))
