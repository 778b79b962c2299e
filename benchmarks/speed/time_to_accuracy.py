"""Seconds of training until Omniglot's held-out accuracy reaches given levels.

    python -m benchmarks time_to_accuracy --data DIR [--preset o15] [--meta-steps 6000] [--quick]

The held-out characters are the last 100 of the 1,200 for training, kept apart with all their
rotations: no test character is looked at. The meta step size is annealed over the meta steps given.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import measure
from reptile_jax import datasets, evaluate, fewshot, omniglot, presets, runs
from reptile_jax.fewshot_problem import held_out_tasks, problem_of, training_tasks
from reptile_jax.train import train

LEVELS = (70, 80, 85, 90)  # per cent, transductive
_TURNS = 4  # classes of a training character: upright, and turned by 90, 180 and 270 degrees


class Point(NamedTuple):
    """A point of the curve."""

    meta_steps: int
    seconds: float  # of training alone; compilation and evaluation are outside
    accuracy: float  # per cent, transductive
    interval: float  # half the width of its 95% interval


def main(argv: list[str]) -> int:
    """Trains until the highest level or the last meta step, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks time_to_accuracy")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", default="o15", choices=("o15", "o55", "o120", "o520"))
    parser.add_argument("--meta-steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=200, help="meta steps between evaluations")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks")
    parser.add_argument(
        "--quick", action="store_true", help="a few meta steps, to see that it runs"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.every, args.tasks = 4, 2, 2
    if args.meta_steps % args.every:
        parser.error(f"--every {args.every} does not divide --meta-steps {args.meta_steps}")
    config = dataclasses.replace(presets.PAPER[args.preset], meta_steps=args.meta_steps)
    splits = keep_apart(omniglot.load_omniglot(args.data), 100)
    curve = measured(config, problem_of(config), splits, every=args.every, num_tasks=args.tasks)
    save(args.preset, config, args, curve)
    return 0


def keep_apart(splits: datasets.ImageSplits, characters: int) -> datasets.ImageSplits:
    """Trains without the last characters and their rotations, and tests on those, upright."""
    first = len(splits.train_names) - _TURNS * characters
    rest, last = slice(first), slice(first, None, _TURNS)
    images, starts, counts = splits.train
    return datasets.ImageSplits(
        fewshot.ImageClasses(images, starts[rest], counts[rest]),
        fewshot.ImageClasses(images, starts[last], counts[last]),
        splits.train_names[rest],
        splits.train_names[last],
    )


def measured(
    config: presets.FewShotImages,
    problem: runs.Problem,
    splits: datasets.ImageSplits,
    *,
    every: int,
    num_tasks: int,
) -> list[Point]:
    """Held-out accuracy by seconds of training, without compilation and evaluation.

    The held-out characters are the last of those for training, kept apart with all their turns; no
    test character is looked at. The curve ends at the highest level or the last meta step.
    """
    tasks, episodes = training_tasks(config, splits), held_out_tasks(config, splits)
    root = jax.random.key(config.seed)
    dispatches = lambda state, until: train(
        problem.learner,
        state,
        tasks,
        jax.random.fold_in(root, 1),
        until=until,
        meta_batch=config.meta_batch,
        steps_per_dispatch=every,
    )
    for _ in dispatches(problem.first_state(), every):  # compiles
        pass
    state, seconds = problem.first_state(), 0.0
    curve = [_point(problem, state, episodes, num_tasks, seconds)]
    loop = dispatches(state, config.meta_steps)
    while int(state.step) < config.meta_steps and curve[-1].accuracy < max(LEVELS):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(next(loop))
        seconds += time.perf_counter() - begin
        curve.append(_point(problem, state, episodes, num_tasks, seconds))
    return curve


def _point(problem: runs.Problem, state, episodes, num_tasks: int, seconds: float) -> Point:
    """Evaluates on tasks that are the same at every point."""
    result = evaluate.evaluate(
        problem.loss_fn,
        fewshot.accuracy(problem.model.apply),
        problem.inner_optimizer,
        state.params,
        episodes,
        jax.random.key(1),
        num_tasks=num_tasks,
        opt_state=state.inner_opt_state,
    )
    percent = lambda scores: float(100 * np.asarray(scores["transductive"])[-1])
    point = Point(int(state.step), seconds, percent(result.mean), percent(result.interval))
    print(
        f"{point.meta_steps:6,} meta steps, {point.seconds:7.1f} s: "
        f"{point.accuracy:.1f} ± {point.interval:.1f}%",
        flush=True,
    )
    return point


def save(preset: str, config: presets.FewShotImages, args, curve: list[Point]) -> None:
    """The first evaluation at or above each level; a level that was not reached is marked so."""
    rows = []
    for level in LEVELS:
        at = next((point for point in curve if point.accuracy >= level), None)
        cells = [f"{at.meta_steps:,}", f"{at.seconds:,.0f}"] if at else ["not reached", ""]
        rows.append([f"{preset}, {level}%", *cells])
    last = curve[-1]
    ended = f"{preset}, {last.accuracy:.1f} ± {last.interval:.1f}% (the end)"
    rows.append([ended, f"{last.meta_steps:,}", f"{last.seconds:,.0f}"])
    measure.show(TITLE, COLUMNS, rows)
    measure.store(
        f"time_to_accuracy_{preset}",
        TITLE,
        COLUMNS,
        rows,
        {
            "curve": [point._asdict() for point in curve],
            "config": dataclasses.asdict(config),
            "held-out tasks": args.tasks,
        },
        command=f"time_to_accuracy --data DIR --preset {preset} --meta-steps {args.meta_steps} "
        f"--every {args.every}",
        on=measure.machine(),
    )


TITLE = "Training time until held-out accuracy, transductive"
COLUMNS = ["accuracy", "meta steps", "seconds of training"]
