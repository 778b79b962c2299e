"""Seconds of training until Omniglot's held-out accuracy reaches given levels.

    python -m benchmarks time_to_accuracy --data DIR [--preset o15] [--meta-steps 6000] [--quick]

The held-out characters are the last 100 of the 1,200 for training, set apart with all their
rotations: no test character is used. The meta step size falls linearly over the meta steps given.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import reptile_jax as rj
from benchmarks import records, speed, tables
from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot

LEVELS = (70, 80, 85, 90)  # per cent, transductive
_TURNS = 4  # classes of a training character: upright, and turned by 90, 180 and 270 degrees


class Point(NamedTuple):
    """A point of the curve."""

    meta_steps: int
    seconds: float  # of training alone, without compilation and evaluation
    accuracy: float  # per cent, transductive
    ci95: float  # half the width of its 95% interval


def main(argv: Sequence[str]) -> int:
    """Trains until the highest level or the last meta step, and writes the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks time_to_accuracy")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", default="o15", choices=("o15", "o55", "o120", "o520"))
    parser.add_argument("--meta-steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=200, help="meta steps between evaluations")
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks")
    speed.add_options(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.every, args.tasks = 4, 2, 2
    if args.meta_steps % args.every:
        parser.error(f"--every {args.every} does not divide --meta-steps {args.meta_steps}")
    path = speed.record(f"time_to_accuracy_{args.preset}", args)
    records.check_free(path, args.fresh or args.quick)
    config = dataclasses.replace(presets.PAPER[args.preset], meta_steps=args.meta_steps)
    splits = set_apart(rj.datasets.load_omniglot(args.data), 100)
    learned = few_shot.learned_by(config)
    curve = measured(config, learned, splits, every=args.every, num_tasks=args.tasks)
    table = tabulated(args.preset, config, args.tasks, curve)
    tables.show(table)
    records.save(path, table, records.command_of(["time_to_accuracy", *argv]))
    return 0


def set_apart(splits: rj.datasets.ImageSplits, characters: int) -> rj.datasets.ImageSplits:
    """Splits the training characters: all but the last to train on, the last, upright, to test."""
    first = len(splits.train_names) - _TURNS * characters
    rest, last = slice(first), slice(first, None, _TURNS)
    images, starts, counts = splits.train
    return rj.datasets.ImageSplits(
        rj.tasks.ImageClasses(images, starts[rest], counts[rest]),
        rj.tasks.ImageClasses(images, starts[last], counts[last]),
        splits.train_names[rest],
        splits.train_names[last],
    )


def measured(
    config: FewShotConfig,
    learned: few_shot.Learned,
    splits: rj.datasets.ImageSplits,
    *,
    every: int,
    num_tasks: int,
) -> list[Point]:
    """Held-out accuracy by seconds of training, without compilation and evaluation.

    The curve ends at the highest level or at the last meta step.
    """
    tasks = few_shot.training_tasks(config, splits)
    episodes = few_shot.held_out_tasks(config, splits)
    root = jax.random.key(config.seed)
    dispatches = lambda state, until: rj.train(
        learned.learner,
        state,
        tasks,
        jax.random.fold_in(root, 1),
        until=until,
        meta_batch=config.meta_batch,
        steps_per_dispatch=every,
    )
    for _ in dispatches(learned.first_state(), every):  # compiles
        pass
    state, seconds = learned.first_state(), 0.0
    curve = [_point(config, learned, state, episodes, num_tasks, seconds)]
    loop = dispatches(state, config.meta_steps)
    while int(state.step) < config.meta_steps and curve[-1].accuracy < max(LEVELS):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(next(loop))
        seconds += time.perf_counter() - begin
        curve.append(_point(config, learned, state, episodes, num_tasks, seconds))
    return curve


def _point(config, learned, state, episodes, num_tasks: int, seconds: float) -> Point:
    """Evaluates on the same tasks at every point."""
    result = rj.evaluate(
        few_shot.adaptation_loss(config, learned.model, config.eval_batch, balanced=False),
        rj.tasks.accuracy(learned.model.apply),
        learned.inner_optimizer,
        state.params,
        episodes,
        jax.random.key(1),
        num_tasks=num_tasks,
        opt_state=state.inner_opt_state,
    )
    percent = lambda scores: float(100 * np.asarray(scores["transductive"])[-1])
    point = Point(int(state.step), seconds, percent(result.mean), percent(result.ci95))
    print(
        f"{point.meta_steps:6,} meta steps, {point.seconds:7.1f} s: "
        f"{point.accuracy:.1f} ± {point.ci95:.1f}%",
        flush=True,
    )
    return point


def tabulated(
    preset: str, config: FewShotConfig, num_tasks: int, curve: list[Point]
) -> tables.Table:
    """The first evaluation at or above each level; levels that were not reached say so."""
    rows = []
    for level in LEVELS:
        at = next((point for point in curve if point.accuracy >= level), None)
        cells = [f"{at.meta_steps:,}", f"{at.seconds:,.0f}"] if at else ["not reached", ""]
        rows.append([f"{preset}, {level}%", *cells])
    last = curve[-1]
    ended = f"{preset}, {last.accuracy:.1f} ± {last.ci95:.1f}% (the end)"
    rows.append([ended, f"{last.meta_steps:,}", f"{last.seconds:,.0f}"])
    return tables.Table(
        "Training time until held-out accuracy, transductive",
        ["accuracy", "meta steps", "seconds of training"],
        rows,
        {
            "curve": [point._asdict() for point in curve],
            "config": dataclasses.asdict(config),
            "held-out tasks": num_tasks,
        },
    )
