"""The sine waves before training, after MAML and after Reptile (Nichol et al. 2018, section 4)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import records
from benchmarks.comparison import experiment, seeds
from benchmarks.comparison.experiment import Asked
from benchmarks.comparison.gradient_combinations import SIZES, Size
from reptile_jax.app import plots

SHOWN = (0, 1, 8, 32)  # inner steps, in the picture
DRAWN = 3  # waves in it
_MODEL = rj.nn.MLP()
LOSS = rj.nn.squared_error(_MODEL.apply)
# Both see 50 points of each wave. Reptile takes them in five mini-batches. MAML's inner loop takes
# ten of them five times over, as at evaluation, and its query set is all of them.
METHODS = {
    "MAML": (
        seeds.Method(rj.maml, optax.sgd, optax.adam),
        rj.tasks.sinusoids(shots=10, steps=5),
        0.02,
        1e-2,
    ),
    "Reptile": (
        seeds.Method(rj.reptile, optax.sgd, optax.sgd),
        rj.tasks.sinusoids(steps=5),
        0.02,
        1.0,
    ),
}
HELD_OUT = rj.tasks.sinusoids(shots=10, steps=32)


def init(key):
    return _MODEL.init(key, jnp.zeros((1, 1)))


def score(params, task):
    """The mean squared error on the whole wave, and what a picture of it needs."""
    x, wave = task.query
    given = jax.tree.map(lambda leaf: leaf[0, :, 0], task.support)
    return {
        "error": LOSS(params, task.query),
        "prediction": _MODEL.apply(params, x)[:, 0],
        "x": x[:, 0],
        "wave": wave[:, 0],
        "given": given._asdict(),
    }


def settings(name: str, size: Size) -> dict[str, Any]:
    _, _, inner_rate, outer_rate = METHODS.get(name) or (*METHODS["Reptile"][:2], 0.02, 0.0)
    return {
        "initialisation": name,
        "inner rate": inner_rate,
        "outer rate": outer_rate,
        "meta steps": size.sine_steps if name in METHODS else 0,
        "seeds": size.seeds,
        "held-out waves": 5 * size.eval_tasks,
    }


def main(argv: Sequence[str]) -> int:
    title = "Sine waves: before training, after MAML and after Reptile"
    return experiment.main(argv, sine_maml, SIZES, title, needs_data=False)


def sine_maml(asked: Asked) -> None:
    """Errors over 32 inner steps, and predictions on three held-out waves."""
    for name in ("before training", *METHODS):
        chosen = settings(name, asked.size)
        asked.run(name.replace(" ", "-"), chosen, functools.partial(_measured, name, chosen))


def _measured(name: str, chosen: dict[str, Any]) -> dict[str, Any]:
    method, distribution, *_ = METHODS.get(name, METHODS["Reptile"])
    ones = np.ones(chosen["seeds"])
    rates = (chosen["inner rate"] * ones, chosen["outer rate"] * ones)
    runs = seeds.first(method, init, range(chosen["seeds"]), *rates)
    if steps := chosen["meta steps"]:
        runs = seeds.advance(
            method, LOSS, runs, distribution, steps, steps, meta_batch=5, side_by_side=True
        )
    scores = jax.device_get(
        seeds.scores(
            method.inner,
            LOSS,
            score,
            runs,
            HELD_OUT,
            jax.random.key(1),
            num_tasks=chosen["held-out waves"],
            score_every=1,
            side_by_side=True,
        )
    )
    shown = jax.tree.map(lambda leaf: leaf[0, :DRAWN], scores)  # of the first seed
    return {
        "steps": np.arange(scores["error"].shape[2]),
        "error": scores["error"].mean(1),  # [seeds, points]
        "x": shown["x"][0, 0],
        "waves": shown["wave"][:, 0],
        "given": jax.tree.map(lambda leaf: leaf[:, 0], shown["given"]),
        "predictions": shown["prediction"][:, SHOWN, :],  # [waves, shown, points]
        "left out": runs.left_out,
    }


def stored(path: Path, size: Size) -> dict[str, dict[str, Any]]:
    """By initialisation, the figures that are measured."""
    names = ("before training", *METHODS)
    found = {
        name: records.stored(path, name.replace(" ", "-"), settings(name, size)) for name in names
    }
    return {name: arm["data"] for name, arm in found.items() if arm is not None}


def draw(path: Path, size: Size) -> None:
    """Three held-out waves, and predictions of each initialisation."""
    found = stored(path, size)
    if not found:
        return
    some, curve = next(iter(found.values())), lambda x, y: (np.array(x), np.array(y))
    by_step = lambda wave: dict(zip(SHOWN, map(np.array, wave), strict=True))
    plots.adaptation(
        path.with_suffix(".png"),
        np.array(some["x"]),
        [np.array(wave) for wave in some["waves"]],
        list(map(curve, some["given"]["inputs"], some["given"]["targets"])),
        {name: list(map(by_step, data["predictions"])) for name, data in found.items()},
    )


def rows(path: Path, size: Size) -> tuple[list[str], list[list[str]]]:
    """Errors by inner steps, mean ± standard deviation over seeds."""
    at = (0, 1, 2, 4, 8, 16, 32)
    found = {name: np.array(data["error"], float) for name, data in stored(path, size).items()}
    return ["initialisation", *map(str, at)], [
        [name, *(f"{e[:, i].mean():.3f} ± {e[:, i].std(ddof=1):.3f}" for i in at)]
        for name, e in found.items()
    ]
