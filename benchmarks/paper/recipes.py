"""Ways to train that differ from the paper's, at an equal number of inner gradients: a table.

    python -m benchmarks recipes --data DIR [--preset o15] [--meta-steps 1000] [--only NAME ...]

Each is a row of the paper with something changed. The scores are on the last 100 characters of the
1,200 for training, kept apart with all their rotations: no test character has a part in the choice.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import arm_files, measure
from benchmarks.recipe_list import RECIPES, Config, Recipe
from benchmarks.time_to_accuracy import keep_apart
from reptile_jax import datasets, evaluate, fewshot, omniglot, presets, processes
from reptile_jax.devices import Mesh
from reptile_jax.fewshot_problem import (
    held_out_tasks,
    meta_optimizer,
    problem_of,
    resized,
    training_tasks,
)
from reptile_jax.reptile import MetaLearner, MetaState, meta_learner
from reptile_jax.train import train


def main(argv: list[str]) -> int:
    """Trains by the recipes that are to be tried, and writes the table of all that were."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", choices=("o15", "o120"), default="o15", help="what is changed")
    parser.add_argument("--meta-steps", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME", default=[*RECIPES])
    parser.add_argument("--fresh", action="store_true", help="try again, beside what is there")
    parser.add_argument("--devices", type=int, help="that share the tasks")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    # On one device unless told otherwise, for a carried inner state has to be.
    with processes.joined(processes.Sharing(args.devices), None, share=False) as (mesh, _):
        splits = keep_apart(omniglot.load_omniglot(args.data), 100)
        arms = {name: _arm(name, args, splits, mesh) for name in RECIPES}
    data = {name: found for name, found in arms.items() if found is not None}
    rows = [
        [name, f"{found['settings']['meta_steps']:,}", *_cells(found["data"])]
        for name, found in data.items()
    ]
    title = f"{args.preset} by other recipes: the inner gradients of {args.meta_steps:,} meta steps"
    asked = f"--preset {args.preset} --meta-steps {args.meta_steps} --tasks {args.tasks}"
    measure.show(title, COLUMNS, rows)
    measure.store(
        f"recipes_{args.preset}_{args.meta_steps}",
        title,
        COLUMNS,
        rows,
        data,
        command=f"recipes --data DIR {asked}",
        on=measure.machine(),
    )
    return 0


def _arm(
    name: str, args: argparse.Namespace, splits: datasets.ImageSplits, mesh: Mesh | None
) -> dict[str, Any] | None:
    """A recipe's arm as it is stored, measured if it is asked for and is not, or is to be fresh."""
    config = configured(RECIPES[name], args.meta_steps, args.preset)
    settings = {"recipe": name, **dataclasses.asdict(config), "held-out tasks": args.tasks}
    folder = measure.RESULTS / "recipes" / args.preset
    arm = name.replace(",", "").replace(" ", "-")
    found = arm_files.stored(folder, arm, settings, dataclasses.asdict(Config()))
    if name not in args.only or (found is not None and not args.fresh):
        return found
    ways = presets.PAPER[args.preset].ways
    measured = functools.partial(tried, RECIPES[name], config, splits, args.tasks, ways, mesh)
    return arm_files.run(folder, arm, settings, measured, fresh=args.fresh)


def configured(recipe: Recipe, meta_steps: int, preset: str = "o15") -> Config:
    """A preset with its changes, over as many inner gradients as it has in `meta_steps`."""
    start = dataclasses.replace(presets.PAPER[preset], meta_steps=meta_steps)
    config = dataclasses.replace(start, **recipe.changes)
    gradients = lambda config: config.meta_batch * config.inner_steps
    steps = meta_steps * gradients(start) // gradients(config)
    return dataclasses.replace(config, meta_steps=max(1, steps))


def tried(
    recipe: Recipe,
    config: Config,
    splits: datasets.ImageSplits,
    num_tasks: int,
    ways: int,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The paper's training with something changed, at as many inner gradients.

    The scores, with 95% intervals over the tasks, are on tasks of 100 characters of the training
    split that are kept apart with all their turns, the same tasks for every recipe, at the
    preset's ways; one training each. No test character has a part in the choice.
    """
    learner, begin = _learner(recipe, config, mesh), time.perf_counter()
    state = _trained(recipe, config, learner, splits)
    seconds = time.perf_counter() - begin
    as_scored = dataclasses.replace(config, ways=ways)
    problem = problem_of(as_scored, mesh)
    if ways != config.ways:  # with a classifier at zero, which is one for any number
        like = jax.eval_shape(lambda: learner.init(problem.first_state().params))
        state = resized(state, like)
    result = evaluate.evaluate(
        problem.loss_fn,
        fewshot.accuracy(problem.model.apply),
        _inner_optimizer(recipe, config),
        state.params,
        held_out_tasks(as_scored, splits),
        jax.random.key(1),
        num_tasks=num_tasks,
        opt_state=state.inner_opt_state,
        mesh=mesh,
    )
    percent = lambda values: float(100 * np.asarray(values)[-1])
    return {
        "accuracy": {mode: percent(mean) for mode, mean in result.mean.items()},
        "interval": {mode: percent(half) for mode, half in result.interval.items()},
        "training seconds": seconds,
    }


def _inner_optimizer(recipe: Recipe, config: Config) -> optax.GradientTransformation:
    return recipe.inner(config) if recipe.inner else problem_of(config).inner_optimizer


def _learner(recipe: Recipe, config: Config, mesh: Mesh | None) -> MetaLearner:
    return meta_learner(
        recipe.meta_gradient(problem_of(config).loss_fn, _inner_optimizer(recipe, config)),
        recipe.outer(config) if recipe.outer else meta_optimizer(config),
        inner_state=config.inner_state,
        mesh=mesh,
    )


def _trained(
    recipe: Recipe, config: Config, learner: MetaLearner, splits: datasets.ImageSplits
) -> MetaState:
    """The end of a training by a recipe, on the device when it returns."""
    first, root = problem_of(config).first_state().params, jax.random.key(config.seed)
    total, number = jax.tree.map(jnp.zeros_like, first), 0
    for state, _ in train(
        learner,
        learner.init(first),
        training_tasks(config, splits),
        jax.random.fold_in(root, 1),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    ):
        if recipe.averaged and int(state.step) > config.meta_steps // 2:
            total, number = jax.tree.map(jnp.add, total, state.params), number + 1
    if number:
        state = state._replace(params=jax.tree.map(lambda leaf: leaf / number, total))
    return jax.block_until_ready(state)


def _cells(found: dict[str, Any]) -> list[str]:
    modes = ("transductive", "non-transductive")
    return [f"{found['accuracy'][mode]:.1f} ± {found['interval'][mode]:.1f}" for mode in modes]


COLUMNS = ["recipe", "meta steps", "transductive, %", "non-transductive, %"]
