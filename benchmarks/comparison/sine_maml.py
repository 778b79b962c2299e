"""The sine waves before training, after MAML and after Reptile (Nichol et al. 2018, section 4)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import arm_files, seeds
from benchmarks.paper_experiments import Size
from reptile_jax import maml, models, plots, report, reptile
from reptile_jax.sinusoids import sinusoids

SHOWN = (0, 1, 8, 32)  # inner steps, in the picture
DRAWN = 3  # waves in it
_MODEL = models.MLP()
LOSS = models.squared_error(_MODEL.apply)
# Both see 50 points of each wave. Reptile takes them in five mini-batches; MAML's inner loop is
# given ten of them five times over, as at evaluation, and its query set is all of them.
METHODS = {
    "MAML": (
        seeds.Method(maml, optax.sgd, optax.adam),
        sinusoids(shots=10, steps=5),
        0.02,
        1e-2,
    ),
    "Reptile": (seeds.Method(reptile, optax.sgd, optax.sgd), sinusoids(steps=5), 0.02, 1.0),
}
HELD_OUT = sinusoids(shots=10, steps=32)


def init(key):
    return _MODEL.init(key, jnp.zeros((1, 1)))


def score(params, task):
    """The mean squared error on the whole wave, and what a picture of it shows."""
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


def sine_maml(data: Path | None, folder: Path, size: Size, fresh: bool) -> None:
    """Errors over 32 inner steps, and what three held-out waves look like."""
    del data
    for name in ("before training", *METHODS):
        arm_files.run(
            folder,
            name.replace(" ", "-"),
            settings(name, size),
            lambda name=name: _measured(name, settings(name, size)),
            fresh=fresh,
        )
    draw(folder, size)
    table(folder, size)


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


def stored(folder: Path, size: Size) -> dict[str, dict[str, Any]]:
    """By initialisation, the figures; those not measured yet are left out."""
    names = ("before training", *METHODS)
    found = {
        name: arm_files.stored(folder, name.replace(" ", "-"), settings(name, size))
        for name in names
    }
    return {name: arm["data"] for name, arm in found.items() if arm is not None}


def draw(folder: Path, size: Size) -> None:
    found = stored(folder, size)
    if not found:
        return
    some = next(iter(found.values()))
    plots.adaptation(
        folder / "sine_maml.png",
        np.array(some["x"]),
        [np.array(wave) for wave in some["waves"]],
        [
            (np.array(x), np.array(y))
            for x, y in zip(some["given"]["inputs"], some["given"]["targets"], strict=True)
        ],
        {
            name: [
                {step: np.array(outputs) for step, outputs in zip(SHOWN, wave, strict=True)}
                for wave in data["predictions"]
            ]
            for name, data in found.items()
        },
    )


def rows(folder: Path, size: Size) -> tuple[list[str], list[list[str]]]:
    """Errors, mean ± standard deviation over seeds, after so many inner steps."""
    at = (0, 1, 2, 4, 8, 16, 32)
    found = {name: np.array(data["error"], float) for name, data in stored(folder, size).items()}
    return ["initialisation", *map(str, at)], [
        [name, *(f"{e[:, i].mean():.3f} ± {e[:, i].std(ddof=1):.3f}" for i in at)]
        for name, e in found.items()
    ]


def table(folder: Path, size: Size) -> None:
    report.table("mean squared error ± spread over seeds, by inner steps", *rows(folder, size))
