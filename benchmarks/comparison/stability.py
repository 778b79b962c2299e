"""At which rates a method diverges, on the sine waves: a grid of inner and outer rates."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import plots, records
from benchmarks.comparison import contest, seeds, sine_maml
from benchmarks.comparison.contest import INNER_STEPS, META_BATCH, SGD, Size

METHODS = {
    "Reptile": SGD["Reptile"],
    "Reptile, Adam outside": seeds.Method(rj.reptile, optax.sgd, optax.adam),
    "FOMAML": SGD["FOMAML"],
    "MAML": SGD["MAML"],
}


def rates(name: str, size: Size) -> tuple[list[float], list[float]]:
    """Inner and outer rates of the grid: Adam's outside, except for Reptile's ε.

    They reach from rates too low to learn much in the time to rates at which all methods diverge.
    """
    spaced = lambda low, high: [
        float(f"{rate:.2g}") for rate in np.geomspace(low, high, size.stability_grid)
    ]
    return spaced(0.005, 0.2), spaced(0.1, 5.0) if name == "Reptile" else spaced(3e-4, 0.1)


def settings(name: str, size: Size) -> dict[str, Any]:
    inner, outer = rates(name, size)
    return {
        "method": name,
        "inner rates": inner,
        "outer rates": outer,
        "meta steps": size.stability_steps,
        "seeds": size.stability_seeds,
        "waves scored": size.sine_tasks,
    }


def measured(name: str, size: Size) -> dict[str, Any]:
    """Errors `[outer, inner, seeds]` after the inner steps of training, at the training's rate.

    All cells and seeds are one program. "zero" is the error of the answer 0 everywhere.
    """
    method, (inner, outer) = METHODS[name], rates(name, size)
    grid = np.meshgrid(outer, inner, np.arange(size.stability_seeds), indexing="ij")
    outers, inners, numbers = (axis.ravel() for axis in grid)
    runs = seeds.first(method, sine_maml.init, numbers, inners, outers)
    tasks = contest.sine(size).entrants[name.partition(",")[0]].training
    steps = size.stability_steps
    runs = seeds.advance(
        method,
        sine_maml.LOSS,
        runs,
        tasks,
        steps,
        steps,
        meta_batch=META_BATCH,
        side_by_side=True,
    )
    score = lambda params, task: {
        "error": sine_maml.LOSS(params, task.query),
        "zero": jnp.mean(task.query.targets**2),
    }
    scores = jax.device_get(
        seeds.scores(
            method.inner,
            sine_maml.LOSS,
            score,
            runs,
            rj.tasks.sinusoids(shots=10, steps=INNER_STEPS),
            jax.random.key(4),
            num_tasks=size.sine_tasks,
            score_every=INNER_STEPS,
            side_by_side=True,
        )
    )
    return {
        "error": scores["error"][:, :, -1].mean(1).reshape(grid[0].shape),
        "zero": float(scores["zero"][0, :, 0].mean()),
        "left out": np.reshape(runs.left_out, grid[0].shape),
    }


def arm(name: str) -> str:
    """The name of a method's arm."""
    return f"stability-{name.replace(', ', '-').replace(' ', '-')}"


def stored(path: Path, size: Size) -> dict[str, dict[str, Any]]:
    """By method: "error" `[outer, inner, seeds]`, NaN where it is not finite, and "diverged".

    A run diverged if its error is not finite, or above twice the error of the answer 0 everywhere,
    about the error of a network that has learnt nothing.
    """
    found = {}
    for name in METHODS:
        there = records.stored(path, arm(name), settings(name, size))
        if there is not None:
            error = np.array(there["data"]["error"], float)
            found[name] = {"error": error, "diverged": ~(error <= 2 * there["data"]["zero"])}
            found[name]["zero"] = there["data"]["zero"]
    return found


def draw(path: Path, size: Size) -> None:
    """Median errors with the percentage of runs that diverged, and the spread over seeds."""
    found = stored(path, size)
    if not found:
        return
    median = lambda error: np.median(np.nan_to_num(error, nan=np.inf), axis=2)
    spread = lambda error: np.std(np.log10(np.where(np.isfinite(error), error, np.nan)), axis=2)
    plots.heat_maps(
        path.parent / "stability-spread.png",
        {name: spread(data["error"]) for name, data in found.items()},
        {name: rates(name, size)[1] for name in found},
        rates("MAML", size)[0],
        title=f"The same grids: spread over {size.stability_seeds} seeds, the standard deviation "
        "of the error's decimal logarithm",
        limit=1.0,
        label="spread, logarithmic",
    )
    plots.heat_maps(
        path.parent / "stability.png",
        {name: median(data["error"]) for name, data in found.items()},
        {name: rates(name, size)[1] for name in found},
        rates("MAML", size)[0],
        title=f"Sine waves after {size.stability_steps:,} meta steps, {INNER_STEPS} inner steps: "
        f"median over {size.stability_seeds} seeds; figures: % of runs that diverged",
        limit=next(iter(found.values()))["zero"],
        share={name: data["diverged"].mean(2) for name, data in found.items()},
    )
