"""What overlapping inner mini-batches cost (Nichol et al. 2018, section 6.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

import reptile_jax as rj
from benchmarks import plots, records
from benchmarks.comparison import experiment, seeds
from benchmarks.comparison.experiment import Asked
from benchmarks.comparison.gradient_combinations import (
    INNER_RATE,
    META_RATE,
    SIZES,
    Size,
    accuracy_curve,
    load,
)


class Overlap(NamedTuple):
    """One way to draw a task's mini-batches, and the gradient to follow."""

    method: seeds.Method
    replace: bool
    separate: bool = False


_REPTILE, _FOML = (
    seeds.Method(gradient, optax.sgd, optax.sgd) for gradient in (rj.reptile, rj.foml)
)
OVERLAPS = {
    "FOMAML, shared tail, cycling": Overlap(_FOML, False),
    "FOMAML, separate tail, cycling": Overlap(_FOML, False, separate=True),
    "FOMAML, shared tail, replacement": Overlap(_FOML, True),
    "Reptile, cycling": Overlap(_REPTILE, False),
    "FOMAML, separate tail, replacement": Overlap(_FOML, True, separate=True),
    "Reptile, replacement": Overlap(_REPTILE, True),
}
# What each panel varies, from 4 steps of 25 of a task's 100 images. The outer step size matters
# where the overlap is complete: all images in each mini-batch.
BASE = {"inner steps": 4, "batch": 25, "meta rate": META_RATE}
PANELS = {
    "inner steps": [{**BASE, "inner steps": steps} for steps in (2, 4, 8)],
    "batch": [{**BASE, "batch": batch} for batch in (10, 25, 100)],
    "meta rate": [{**BASE, "batch": 100, "meta rate": rate} for rate in (0.25, 1.0)],
}


def tasks(classes: rj.tasks.ImageClasses, overlap: Overlap, steps: int, batch: int):
    """Tasks of 20 images of each of 5 classes, all in the mini-batches or with a separate tail.

    A separate tail has `batch` images, at most 50, and is the task's query set. The earlier
    mini-batches use the other images.
    """
    tail = min(batch // 5, 10) if overlap.separate else 0
    rest = 20 - tail
    return rj.tasks.few_shot(
        classes,
        ways=5,
        shots=rest,
        query_shots=tail,
        steps=steps - overlap.separate,
        batch_size=min(batch, 5 * rest),
        replace=overlap.replace,
    )


def arms(size: Size) -> dict[str, tuple[str, dict[str, Any]]]:
    """By arm, the way of drawing and the settings."""
    points = {tuple(point.items()) for panel in size.overlap_panels for point in PANELS[panel]}
    common = {
        "seeds": size.seeds,
        "filters": size.filters,
        "meta steps": size.overlap_steps,
        "test tasks": size.eval_tasks,
    }
    return {
        f"{name.replace(', ', '-').replace(' ', '-')}-{'-'.join(f'{v:g}' for _, v in point)}": (
            name,
            {"mini-batches": name, **dict(point), "inner rate": INNER_RATE, **common},
        )
        for point in sorted(points)
        for name in list(OVERLAPS)[: size.overlaps]
    }


def main(argv: Sequence[str]) -> int:
    return experiment.main(argv, minibatch_overlap, SIZES, "Overlap of the inner mini-batches")


def minibatch_overlap(asked: Asked) -> None:
    """What it costs the last gradient that its images were seen before (section 6.3)."""
    size = asked.size
    for arm, (name, settings) in arms(size).items():

        def measured(overlap=OVERLAPS[name], settings=settings):
            problem = load(asked.data, size.filters)
            return accuracy_curve(
                problem,
                overlap.method,
                tasks(problem.splits.train, overlap, settings["inner steps"], settings["batch"]),
                size,
                outer_rate=settings["meta rate"],
                steps=size.overlap_steps,
                points=1,
            )

        asked.run(arm, settings, measured)


def stored(path: Path, size: Size) -> dict[tuple, np.ndarray]:
    """By way of drawing and point: accuracy in %, non-transductive, of each seed."""
    return {
        tuple(settings[key] for key in ("mini-batches", *BASE)): 100
        * np.ravel(found["data"]["non-transductive"])
        for arm, (_, settings) in arms(size).items()
        if (found := records.stored(path, arm, settings)) is not None
    }


def rows(path: Path, size: Size) -> tuple[list[str], list[list[str]]]:
    """Accuracy, mean ± standard deviation over seeds, by way of drawing and point."""
    found = stored(path, size)
    points = sorted({key[1:] for key in found})
    cell = lambda values: f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
    columns = [f"{steps} of {batch}, outer step {rate:g}" for steps, batch, rate in points]
    return ["inner steps of images", *columns], [
        [name, *(cell(found[name, *p]) if (name, *p) in found else "" for p in points)]
        for name in OVERLAPS
        if any(name == other for other, *_ in found)
    ]


def draw(path: Path, size: Size) -> None:
    """Accuracy by inner steps, by mini-batch and by outer step size."""
    found = stored(path, size)
    if not found:
        return

    def curve(name, varied, points):
        there = [(p[varied], found.get((name, *p.values()))) for p in points]
        there = [(x, values) for x, values in there if values is not None]
        return [x for x, _ in there], np.array([values for _, values in there]).T

    panels = []
    for varied in size.overlap_panels:
        points = PANELS[varied]
        curves = {name: curve(name, varied, points) for name in OVERLAPS}
        curves = {name: (x, y) for name, (x, y) in curves.items() if x}
        label = {"batch": "inner batch", "meta rate": "outer step size, inner batch 100"}
        panels.append(plots.Panel(label.get(varied, varied), "accuracy, %", curves, log_x=True))
    plots.panels(
        path.with_suffix(".png"),
        panels,
        title=f"Omniglot 5-way 5-shot, non-transductive, after {size.overlap_steps:,} meta steps; "
        f"mean and spread of {size.seeds} seeds",
    )
