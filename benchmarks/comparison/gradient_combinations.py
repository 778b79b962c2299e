"""Which inner gradients to follow (Nichol et al. 2018, section 6.2), on the paper's own data.

Plain SGD in training and at evaluation, as in the paper's commands: their rate of 0.003 on a loss
summed over 25 images is 0.075 on the mean loss.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import plots, records
from benchmarks.comparison import experiment, seeds
from benchmarks.comparison.experiment import Asked

INNER_RATE = 25 * 0.003  # of SGD on the mean loss
META_RATE = 0.25  # ε at the start, on the sum of the inner updates
MODES = ("non-transductive", "transductive")


@dataclasses.dataclass(frozen=True)
class Size:
    """How long and how many."""

    seeds: int
    filters: int  # of each convolution; the paper: 64
    combined: tuple[int, ...]  # gradients, besides g1 alone
    combination_steps: int  # meta steps of one task each; the paper: 40,000
    overlap_panels: tuple[str, ...]
    overlaps: int  # how many ways to draw mini-batches
    overlap_steps: int
    points: int  # of a curve
    eval_tasks: int
    sine_steps: int


_ALL = {"combined": (2, 3, 4), "overlap_panels": ("inner steps", "batch", "meta rate")}
SIZES = {
    "tiny": Size(2, 4, (2,), 4, ("meta rate",), 2, 4, 2, 4, 50),
    "small": Size(
        seeds=3,
        filters=16,
        combination_steps=2000,
        overlaps=4,
        overlap_steps=600,
        points=4,
        eval_tasks=40,
        sine_steps=10_000,
        **_ALL,
    ),
    "full": Size(
        seeds=5,
        filters=64,
        combination_steps=40_000,
        overlaps=6,
        overlap_steps=40_000,
        points=20,
        eval_tasks=1000,
        sine_steps=30_000,
        **_ALL,
    ),
}


class Omniglot(NamedTuple):
    """5-way 5-shot, evaluated as in the paper's commands: five steps on all 25 images."""

    splits: Any
    model: rj.nn.ConvNet
    loss_fn: Any
    score_fn: Any

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, 28, 28, 1)))


@functools.cache
def load(data: Path, filters: int) -> Omniglot:
    model, splits = rj.nn.ConvNet(5, features=filters), rj.datasets.load_omniglot(data)
    loss_fn, score_fn = rj.nn.cross_entropy(model.apply), rj.tasks.accuracy(model.apply)
    return Omniglot(splits, model, loss_fn, score_fn)


def accuracy_curve(
    problem: Omniglot, method: seeds.Method, distribution, size: Size, *, outer_rate, steps, points
) -> Mapping[str, Any]:
    """Accuracy on the test characters, `[seeds, points]` in both ways, against meta steps."""
    ones = np.ones(size.seeds)
    runs = seeds.first(
        method, problem.init, range(size.seeds), INNER_RATE * ones, outer_rate * ones
    )
    held_out = rj.tasks.few_shot(
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
    """The paper's ten curves: by arm, the name in the picture and the weights of g_1 ... g_k."""
    found = {"g1": ("g1", (1.0,))}
    for k in size.combined:
        total = " + ".join(f"g{i + 1}" for i in range(k))
        found[f"sum-{k}"] = (total, (1.0,) * k)
        found[f"mean-{k}"] = (f"({total}) / {k}", (1.0 / k,) * k)
        found[f"last-{k}"] = (f"g{k}", (0.0,) * (k - 1) + (1.0,))
    return found


def main(argv: Sequence[str]) -> int:
    return experiment.main(argv, gradient_combinations, SIZES, "Which inner gradients to follow")


def gradient_combinations(asked: Asked) -> None:
    """Which sum of the inner gradients to follow (section 6.2); all mini-batches differ."""
    size = asked.size
    for arm, (_, weights) in combinations(size).items():

        def measured(weights=weights):
            problem = load(asked.data, size.filters)
            gradient = functools.partial(rj.weighted_gradients, weights=weights)
            return accuracy_curve(
                problem,
                seeds.Method(gradient, optax.sgd, optax.sgd),
                rj.tasks.few_shot(
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

        asked.run(arm, _combination_settings(size, weights), measured)


def _combination_settings(size: Size, weights) -> dict[str, Any]:
    return {
        "weights": weights,
        "inner rate": INNER_RATE,
        "outer rate": META_RATE * INNER_RATE,
        "meta steps": size.combination_steps,
        "points": size.points,
        "seeds": size.seeds,
        "filters": size.filters,
        "test tasks": size.eval_tasks,
    }


def combination_arms(path: Path, size: Size) -> dict[str, dict[str, Any]]:
    """By name in the picture, the arms that are measured."""
    found = {
        name: records.stored(path, arm, _combination_settings(size, weights))
        for arm, (name, weights) in combinations(size).items()
    }
    return {name: arm for name, arm in found.items() if arm is not None}


def draw(path: Path, size: Size) -> None:
    """A panel for each number of inner steps, with g1 in each of them."""
    arms = combination_arms(path, size)
    if not arms:
        return

    def panel(k: int) -> plots.Panel:
        curves = {
            name: (arm["data"]["meta steps"], 100 * np.array(arm["data"]["non-transductive"]))
            for name, arm in arms.items()
            if len(arm["settings"]["weights"]) in (1, k)
        }
        return plots.Panel("meta steps", "accuracy, %", curves)

    plots.panels(
        path.with_suffix(".png"),
        [panel(k) for k in size.combined],
        title=f"Omniglot 5-way 5-shot, non-transductive; mean and spread of {size.seeds} seeds",
    )
