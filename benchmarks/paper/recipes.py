"""Ways to train that differ from the paper's, at an equal number of inner gradients: a table.

    python -m benchmarks recipes --data DIR [--preset o15] [--meta-steps 1000] [--only NAME ...]

Each is a row of the paper with a change. The scores are on the last 100 characters of the 1,200 for
training, set apart with all their rotations: the choice uses no test character.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.paper.recipe_list import RECIPES, Recipe
from benchmarks.speed.time_to_accuracy import set_apart
from reptile_jax.app import presets, processes
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot

MODES = ("transductive", "non-transductive")


def main(argv: Sequence[str]) -> int:
    """Trains by the recipes that are to be tried, and writes the table of all that were."""
    args = _arguments(argv)
    folder = args.out / "quick" if args.quick else args.out
    path = folder / "paper" / f"recipes_{args.preset}_{args.meta_steps}.json"
    asked = f"--preset {args.preset} --meta-steps {args.meta_steps} --tasks {args.tasks}"
    about = {
        "title": f"{args.preset} by other recipes: the inner gradients of {args.meta_steps:,} meta "
        "steps",
        "command": records.command_of(["recipes", "--data", "DIR", asked]),
    }
    # On one device unless told otherwise: a carried inner state needs that.
    with processes.joined(processes.Sharing(args.devices), None, share=False) as (mesh, _):
        splits = set_apart(rj.datasets.load_omniglot(args.data), 100)
        for name in args.only:
            config, settings = _settings(name, args)
            if args.fresh or _stored(path, name, settings) is None:
                ways = presets.PAPER[args.preset].ways
                measured = functools.partial(
                    tried, RECIPES[name], config, splits, args.tasks, ways, mesh
                )
                records.run(path, about, _arm(name), settings, measured, fresh=args.fresh)
    rows = tabulated(path, args)
    records.update(path, {**about, "machine": records.machine(), "columns": COLUMNS, "rows": rows})
    tables.show(tables.Table(about["title"], COLUMNS, rows))
    return 0


def tabulated(path: Path, args: argparse.Namespace) -> list[list[str]]:
    """A row for each recipe that has been tried with these arguments."""
    rows = []
    for name in RECIPES:
        config, settings = _settings(name, args)
        if (found := _stored(path, name, settings)) is not None:
            rows.append([name, f"{config.meta_steps:,}", *cells(found["data"])])
    return rows


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", choices=("o15", "o120"), default="o15", help="what is changed")
    parser.add_argument("--meta-steps", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME", default=[*RECIPES])
    parser.add_argument("--fresh", action="store_true", help="try again, and keep both")
    parser.add_argument("--devices", type=int, help="that share the tasks")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    return args


def _arm(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _settings(name: str, args: argparse.Namespace) -> tuple[FewShotConfig, dict[str, Any]]:
    config = configured(RECIPES[name], args.meta_steps, args.preset)
    as_dict = dataclasses.asdict(config)
    return config, {"recipe": name, **as_dict, "held-out tasks": args.tasks}


def _stored(path: Path, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    defaults = dataclasses.asdict(FewShotConfig())
    return records.stored(path, _arm(name), settings, defaults)


def configured(recipe: Recipe, meta_steps: int, preset: str = "o15") -> FewShotConfig:
    """A preset with its changes, over as many inner gradients as the preset has in `meta_steps`."""
    start = dataclasses.replace(presets.PAPER[preset], meta_steps=meta_steps)
    config = dataclasses.replace(start, **recipe.changes)
    gradients = lambda config: config.meta_batch * config.inner_steps
    steps = meta_steps * gradients(start) // gradients(config)
    return dataclasses.replace(config, meta_steps=max(1, steps))


def tried(
    recipe: Recipe,
    config: FewShotConfig,
    splits: rj.datasets.ImageSplits,
    num_tasks: int,
    ways: int,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The paper's training with a change, at as many inner gradients.

    The scores, with 95% intervals over the tasks, are on tasks of 100 characters of the training
    split that are set apart with all their rotations: the same tasks for every recipe, at the
    preset's ways.
    """
    learner, begin = _learner(recipe, config, mesh), time.perf_counter()
    state = _trained(recipe, config, learner, splits)
    seconds = time.perf_counter() - begin
    scored = config
    if ways != config.ways:  # a classifier at zero is one for any number
        scored = dataclasses.replace(config, eval_ways=ways)
        state = few_shot.for_ways(ways, state)
    model = few_shot.network(config, ways)
    result = rj.evaluate(
        few_shot.adaptation_loss(config, model, config.eval_batch, balanced=False),
        rj.tasks.accuracy(model.apply),
        _inner_optimizer(recipe, config),
        state.params,
        few_shot.held_out_tasks(scored, splits),
        jax.random.key(1),
        num_tasks=num_tasks,
        opt_state=state.inner_opt_state,
        mesh=mesh,
    )
    percent = lambda values: float(100 * np.asarray(values)[-1])
    return {
        "accuracy": {mode: percent(mean) for mode, mean in result.mean.items()},
        "ci95": {mode: percent(half) for mode, half in result.ci95.items()},
        "training seconds": seconds,
    }


def _inner_optimizer(recipe: Recipe, config: FewShotConfig) -> optax.GradientTransformation:
    return recipe.inner(config) if recipe.inner else few_shot.learned_by(config).inner_optimizer


def _learner(recipe: Recipe, config: FewShotConfig, mesh: Mesh | None) -> rj.MetaLearner:
    model = few_shot.network(config, config.ways)
    loss_fn = rj.nn.cross_entropy(model.apply, config.inner_batch)
    return rj.meta_learner(
        recipe.meta_gradient(loss_fn, _inner_optimizer(recipe, config)),
        recipe.outer(config) if recipe.outer else few_shot.meta_optimizer(config),
        inner_opt_state=config.inner_opt_state,
        mesh=mesh,
    )


def _trained(
    recipe: Recipe, config: FewShotConfig, learner: rj.MetaLearner, splits: rj.datasets.ImageSplits
) -> rj.MetaState:
    """The last state of a training by a recipe, on the device when this returns."""
    first, root = few_shot.learned_by(config).first_state().params, jax.random.key(config.seed)
    total, number = jax.tree.map(jnp.zeros_like, first), 0
    for state, _ in rj.train(
        learner,
        learner.init(first),
        few_shot.training_tasks(config, splits),
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


def cells(found: dict[str, Any]) -> list[str]:
    return [f"{found['accuracy'][mode]:.1f} ± {found['ci95'][mode]:.1f}" for mode in MODES]


COLUMNS = ["recipe", "meta steps", "transductive, %", "non-transductive, %"]
