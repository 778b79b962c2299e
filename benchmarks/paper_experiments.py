"""The paper's experiments on its own data: gradient combinations, overlap, and the sine waves.

Nichol et al. 2018, sections 6.2, 6.3 and 4. Meta-training in the first two is by plain SGD, as the
paper's commands have it: their 0.003 on a loss summed over 25 images is 0.075 on the mean loss.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import arm_files, pictures, seeds
from reptile_jax import fewshot, foml, models, omniglot, reptile, weighted

INNER_RATE = 25 * 0.003  # of SGD on the mean loss
META_RATE = 0.25  # ε at the start, on the sum of the inner updates
MODES = ("non-transductive", "transductive")


@dataclasses.dataclass(frozen=True)
class Size:
    """How long and how many."""

    seeds: int
    combined: tuple[int, ...]  # gradients, besides g1 alone
    combination_steps: int  # meta steps of one task each; the paper: 40,000
    overlap_panels: tuple[str, ...]
    overlaps: int  # ways to draw mini-batches, the first so many
    overlap_steps: int
    points: int  # of a curve
    eval_tasks: int
    sine_steps: int


SIZES = {
    "tiny": Size(2, (2,), 4, ("meta rate",), 2, 4, 2, 4, 50),
    "small": Size(3, (2, 3, 4), 1000, ("inner steps", "batch", "meta rate"), 4, 300, 5, 40, 10_000),
    "full": Size(
        5, (2, 3, 4), 40_000, ("inner steps", "batch", "meta rate"), 6, 40_000, 20, 1000, 30_000
    ),
}


class Omniglot(NamedTuple):
    """5-way 5-shot, evaluated as in the paper's commands: five steps on all 25 images."""

    splits: Any
    model: models.ConvNet
    loss_fn: Any
    score_fn: Any

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, 28, 28, 1)))


@functools.cache
def load(data: Path) -> Omniglot:
    model = models.omniglot_net(5)
    splits = omniglot.load_omniglot(data)
    return Omniglot(splits, model, models.cross_entropy(model.apply), fewshot.accuracy(model.apply))


def accuracy_curve(
    problem: Omniglot, method: seeds.Method, distribution, size: Size, *, outer_rate, steps, points
) -> Mapping[str, Any]:
    """Accuracy on the test characters, `[seeds, points]` in both ways, against meta steps."""
    ones = np.ones(size.seeds)
    runs = seeds.first(
        method, problem.init, range(size.seeds), INNER_RATE * ones, outer_rate * ones
    )
    held_out = fewshot.few_shot(
        problem.splits.test, ways=5, shots=5, query_shots=1, steps=5, batch_size=25
    )
    side_by_side = not seeds.sequential_on_cpu()
    done, ends, found = 0, [round(steps * (i + 1) / points) for i in range(points)], []
    for end in ends:
        runs = seeds.advance(
            method,
            problem.loss_fn,
            runs,
            distribution,
            end - done,
            steps,
            meta_batch=1,
            side_by_side=side_by_side,
        )
        done = end
        scores = seeds.scores(
            method.inner,
            problem.loss_fn,
            problem.score_fn,
            runs,
            held_out,
            jax.random.key(1),
            num_tasks=size.eval_tasks,
            score_every=5,
            side_by_side=side_by_side,
        )
        found.append(jax.device_get(scores))
    accuracy = {mode: np.stack([s[mode][:, :, -1].mean(1) for s in found], 1) for mode in MODES}
    return {"meta steps": ends, **accuracy, "left out": jax.device_get(runs.left_out)}


def combinations(size: Size) -> dict[str, tuple[str, tuple[float, ...]]]:
    """The paper's ten curves: by arm, its name in the picture and the weights of g_1 ... g_k."""
    found = {"g1": ("g1", (1.0,))}
    for k in size.combined:
        total = " + ".join(f"g{i + 1}" for i in range(k))
        found[f"sum-{k}"] = (total, (1.0,) * k)
        found[f"mean-{k}"] = (f"({total}) / {k}", (1.0 / k,) * k)
        found[f"last-{k}"] = (f"g{k}", (0.0,) * (k - 1) + (1.0,))
    return found


def gradient_combinations(data: Path, folder: Path, size: Size, fresh: bool) -> None:
    """Section 6.2: which sum of the inner gradients to follow. Each mini-batch is of new images."""
    for arm, (_, weights) in combinations(size).items():

        def measured(weights=weights):
            problem = load(data)
            gradient = functools.partial(weighted, weights=weights)
            return accuracy_curve(
                problem,
                seeds.Method(gradient, optax.sgd, optax.sgd),
                fewshot.few_shot(
                    problem.splits.train,
                    ways=5,
                    shots=5 * len(weights),
                    steps=len(weights),
                    batch_size=25,
                ),
                size,
                outer_rate=META_RATE * INNER_RATE,
                steps=size.combination_steps,
                points=size.points,
            )

        arm_files.run(folder, arm, _combination_settings(size, weights), measured, fresh=fresh)
    draw_combinations(folder, size)


def _combination_settings(size: Size, weights) -> dict[str, Any]:
    return {
        "weights": weights,
        "inner rate": INNER_RATE,
        "outer rate": META_RATE * INNER_RATE,
        "meta steps": size.combination_steps,
        "points": size.points,
        "seeds": size.seeds,
        "test tasks": size.eval_tasks,
    }


def combination_arms(folder: Path, size: Size) -> dict[str, dict[str, Any]]:
    """By name in the picture, what is stored of each arm; those not measured yet are left out."""
    found = {
        name: arm_files.stored(folder, arm, _combination_settings(size, weights))
        for arm, (name, weights) in combinations(size).items()
    }
    return {name: arm for name, arm in found.items() if arm is not None}


def draw_combinations(folder: Path, size: Size) -> None:
    """A panel for each number of inner steps, with g1 in all of them."""
    arms = combination_arms(folder, size)
    if not arms:
        return

    def panel(k: int) -> pictures.Panel:
        curves = {
            name: (arm["data"]["meta steps"], 100 * np.array(arm["data"]["non-transductive"]))
            for name, arm in arms.items()
            if len(arm["settings"]["weights"]) in (1, k)
        }
        return pictures.Panel("meta steps", "accuracy, %", curves)

    pictures.panels(
        folder / "gradient_combinations.png",
        [panel(k) for k in size.combined],
        title=f"Omniglot 5-way 5-shot, non-transductive; mean and spread of {size.seeds} seeds",
    )


class Overlap(NamedTuple):
    """One way to draw a task's mini-batches, and what is followed."""

    method: seeds.Method
    replace: bool
    separate: bool = False


_REPTILE, _FOML = (seeds.Method(gradient, optax.sgd, optax.sgd) for gradient in (reptile, foml))
OVERLAPS = {
    "FOMAML, shared tail, cycling": Overlap(_FOML, False),
    "FOMAML, separate tail, cycling": Overlap(_FOML, False, separate=True),
    "FOMAML, shared tail, replacement": Overlap(_FOML, True),
    "Reptile, cycling": Overlap(_REPTILE, False),
    "FOMAML, separate tail, replacement": Overlap(_FOML, True, separate=True),
    "Reptile, replacement": Overlap(_REPTILE, True),
}
# What each panel varies, about 4 steps of 25 of a task's 100 images. The outer step size matters
# where the overlap is whole: all images in each mini-batch.
BASE = {"inner steps": 4, "batch": 25, "meta rate": META_RATE}
PANELS = {
    "inner steps": [{**BASE, "inner steps": steps} for steps in (2, 4, 8)],
    "batch": [{**BASE, "batch": batch} for batch in (10, 25, 100)],
    "meta rate": [{**BASE, "batch": 100, "meta rate": rate} for rate in (0.1, 0.25, 1.0)],
}


def overlap_tasks(classes: fewshot.ImageClasses, overlap: Overlap, steps: int, batch: int):
    """Tasks of 20 images of each of 5 classes: all of them in the mini-batches, or a tail apart.

    A separate tail has `batch` images, 50 at most, and is the task's query set; the earlier
    mini-batches are of the others.
    """
    tail = min(batch // 5, 10) if overlap.separate else 0
    rest = 20 - tail
    return fewshot.few_shot(
        classes,
        ways=5,
        shots=rest,
        query_shots=tail,
        steps=steps - overlap.separate,
        batch_size=min(batch, 5 * rest),
        replace=overlap.replace,
    )


def overlap_arms(size: Size) -> dict[str, tuple[str, dict[str, Any]]]:
    """By arm, the way of drawing and the settings."""
    points = {tuple(point.items()) for panel in size.overlap_panels for point in PANELS[panel]}
    common = {"seeds": size.seeds, "meta steps": size.overlap_steps, "test tasks": size.eval_tasks}
    return {
        f"{name.replace(', ', '-').replace(' ', '-')}-{'-'.join(f'{v:g}' for _, v in point)}": (
            name,
            {"mini-batches": name, **dict(point), "inner rate": INNER_RATE, **common},
        )
        for point in sorted(points)
        for name in list(OVERLAPS)[: size.overlaps]
    }


def minibatch_overlap(data: Path, folder: Path, size: Size, fresh: bool) -> None:
    """Section 6.3: what it costs the last gradient that its images have been seen before."""
    for arm, (name, settings) in overlap_arms(size).items():

        def measured(overlap=OVERLAPS[name], settings=settings):
            problem = load(data)
            return accuracy_curve(
                problem,
                overlap.method,
                overlap_tasks(
                    problem.splits.train, overlap, settings["inner steps"], settings["batch"]
                ),
                size,
                outer_rate=settings["meta rate"],
                steps=size.overlap_steps,
                points=1,
            )

        arm_files.run(folder, arm, settings, measured, fresh=fresh)
    draw_overlap(folder, size)


def draw_overlap(folder: Path, size: Size) -> None:
    stored = {
        tuple(settings[key] for key in ("mini-batches", *BASE)): found
        for arm, (_, settings) in overlap_arms(size).items()
        if (found := arm_files.stored(folder, arm, settings)) is not None
    }
    if not stored:
        return

    def curve(name, varied, points):
        found = [(p[varied], stored.get((name, *p.values()))) for p in points]
        found = [(x, arm["data"]["non-transductive"]) for x, arm in found if arm is not None]
        return [x for x, _ in found], 100 * np.array([np.ravel(y) for _, y in found]).T

    panels = []
    for varied in size.overlap_panels:
        points = PANELS[varied]
        curves = {name: curve(name, varied, points) for name in OVERLAPS}
        curves = {name: (x, y) for name, (x, y) in curves.items() if x}
        label = {"batch": "inner batch", "meta rate": "outer step size, inner batch 100"}
        panels.append(pictures.Panel(label.get(varied, varied), "accuracy, %", curves, log_x=True))
    pictures.panels(
        folder / "minibatch_overlap.png",
        panels,
        title=f"Omniglot 5-way 5-shot, non-transductive, after {size.overlap_steps:,} meta steps; "
        f"mean and spread of {size.seeds} seeds",
    )
