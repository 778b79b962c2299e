"""Ways to train that differ from the paper's, on equally many images: a table.

    python -m benchmarks recipes --data DIR [--preset o15] [--meta-steps 1000] [--only NAME ...]

Each is a row of the paper with a change. A training that was stopped goes on. The scores are on
the last 100 characters of the 1,200 for training, set apart with all their rotations: the choice
uses no test character.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.paper import levers, trainings
from benchmarks.paper.recipe_list import RECIPES, Recipe
from benchmarks.paper.scoring import MODES, PAPER, Evaluation, balanced, scored
from benchmarks.speed.time_to_accuracy import set_apart
from reptile_jax.app import json_files, presets, processes
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments import few_shot

DEFAULTS = dataclasses.asdict(FewShotConfig())  # of settings that older arms may lack


def main(argv: Sequence[str]) -> int:
    """Trains by the recipes that are to be tried, and writes the table of all that were."""
    args = _arguments(argv)
    path = record(args, "recipes")
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
            settings = _settings(name, args)
            if args.fresh or _stored(path, name, settings) is None:
                measured = functools.partial(tried, name, args, splits, mesh)
                how = {"fresh": args.fresh, "defaults": DEFAULTS}
                records.run(path, about, arm_of(name), settings, measured, **how)
    names, rows = columns(args.preset), tabulated(path, args)
    records.update(path, {**about, "machine": records.machine(), "columns": names, "rows": rows})
    tables.show(tables.Table(about["title"], names, rows))
    return 0


def record(args: argparse.Namespace, name: str) -> Path:
    """Where the figures go."""
    folder = args.out / "quick" if args.quick else args.out
    return folder / "paper" / f"{name}_{args.preset}_{args.meta_steps}.json"


def tabulated(path: Path, args: argparse.Namespace) -> list[list[str]]:
    """A row for each recipe that has been tried, of the arm with the most held-out tasks."""
    rows = []
    for name, recipe in RECIPES.items():
        if (found := _stored(path, name, _settings(name, args))) is not None:
            steps = configured(recipe, args.meta_steps, args.preset).meta_steps
            data, tasks = found["data"], found["settings"]["held-out tasks"]
            row = [name, f"{steps:,}", f"{tasks:,}", *cells(data)]
            if _has_other_batches(args.preset):
                row += cells(data["balanced"]) if "balanced" in data else ["", ""]
            rows.append(row)
    return rows


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    add_options(parser)
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME", default=[*RECIPES])
    parser.add_argument("--fresh", action="store_true", help="train anew, and keep both")
    parser.add_argument("--devices", type=int, help="that share the tasks of training")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    return args


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that trainings by a recipe have in common."""
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", choices=("o15", "o120"), default="o15", help="what is changed")
    parser.add_argument("--meta-steps", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="of trainings")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")


def arm_of(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _settings(name: str, args: argparse.Namespace) -> dict[str, Any]:
    config = configured(RECIPES[name], args.meta_steps, args.preset)
    return {"recipe": name, **dataclasses.asdict(config), "held-out tasks": args.tasks}


def _stored(path: Path, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The arm of these settings with as many held-out tasks, or more."""
    numbers = {arm["settings"]["held-out tasks"] for arm in records.read(path).get("arms", [])}
    enough = (number for number in numbers if number >= settings["held-out tasks"])
    for number in sorted(enough, reverse=True):
        asked = {**settings, "held-out tasks": number}
        if (found := records.stored(path, arm_of(name), asked, DEFAULTS)) is not None:
            return found
    return None


def configured(recipe: Recipe, meta_steps: int, preset: str = "o15") -> FewShotConfig:
    """A preset with its changes, over as many images as the preset's inner steps see.

    An image counts each time that an inner step takes its gradient.
    """
    start = dataclasses.replace(presets.PAPER[preset], meta_steps=meta_steps)
    config = dataclasses.replace(start, **recipe.changes)
    images = lambda config: config.meta_batch * config.inner_steps * config.inner_batch
    steps = meta_steps * images(start) // images(config)
    return dataclasses.replace(config, meta_steps=max(1, steps))


def folder_of(name: str, args: argparse.Namespace) -> Path:
    """Where the training of a recipe is."""
    return args.runs / f"{args.preset}-{args.meta_steps}" / arm_of(name)


def tried(
    name: str, args: argparse.Namespace, splits: rj.datasets.ImageSplits, mesh: Mesh | None = None
) -> dict[str, Any]:
    """The paper's training with a change, on as many images.

    The scores, with 95% intervals over the tasks, are on tasks of 100 characters of the training
    split that are set apart with all their rotations: the same tasks for every recipe, at the
    preset's ways, by the preset's evaluation. At 20 ways also with mini-batches of all classes.
    """
    folder, recipe, row = folder_of(name, args), RECIPES[name], presets.PAPER[args.preset]
    if args.fresh:
        numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
        folder = next(path for path in itertools.chain([folder], numbered) if not path.exists())
    config = configured(recipe, args.meta_steps, args.preset)
    state = trained(recipe, config, splits, folder, mesh)
    score = functools.partial(
        score_of, recipe, config, state, splits=splits, row=row, num_tasks=args.tasks
    )
    found = score(PAPER)
    if _has_other_batches(args.preset):
        found["balanced"] = score(balanced(row.ways))
    return {**found, "training seconds": trainings.training_seconds(folder)}


def score_of(
    recipe: Recipe,
    config: FewShotConfig,
    state: rj.MetaState,
    evaluation: Evaluation,
    *,
    splits: rj.datasets.ImageSplits,
    row: FewShotConfig,
    num_tasks: int,
) -> dict[str, Any]:
    """Scores of a training at the ways of a row of the paper."""
    if row.ways != config.ways:  # a classifier at zero is one for any number
        state = few_shot.for_ways(row.ways, state)
    # As many images as the row's mini-batches have divide the loss: training's may be of more
    # classes, each with as many images.
    config = dataclasses.replace(config, ways=row.ways, inner_batch=row.inner_batch)
    evaluation = evaluation._replace(mean_scale=evaluation.mean_scale or recipe.mean_scale)
    inner = _inner_optimizer(recipe, config)
    return scored(evaluation, config, inner, state, splits, num_tasks)


def _inner_optimizer(recipe: Recipe, config: FewShotConfig) -> optax.GradientTransformation:
    return recipe.inner(config) if recipe.inner else few_shot.learned_by(config).inner_optimizer


def _learner(recipe: Recipe, config: FewShotConfig, mesh: Mesh | None) -> rj.MetaLearner:
    model = few_shot.network(config, config.ways)
    loss_fn = rj.nn.cross_entropy(model.apply, config.inner_batch)
    if recipe.loss:
        loss_fn = recipe.loss(model)
    meta_gradient = recipe.meta_gradient
    if recipe.mean_scale and not recipe.loss:
        start = rj.nn.from_prototypes(model, recipe.mean_scale)
        meta_gradient = functools.partial(levers.started, start)
    outer = recipe.outer(config) if recipe.outer else few_shot.meta_optimizer(config)
    if recipe.averaged:
        outer = levers.tail_mean(outer, config.meta_steps // 2)
    return rj.meta_learner(
        meta_gradient(loss_fn, _inner_optimizer(recipe, config)),
        outer,
        inner_opt_state=config.inner_opt_state,
        mesh=mesh,
    )


def trained(
    recipe: Recipe,
    config: FewShotConfig,
    splits: rj.datasets.ImageSplits,
    folder: Path | None = None,
    mesh: Mesh | None = None,
) -> rj.MetaState:
    """The last state of a training by a recipe; with a folder, one that was stopped goes on.

    Raises:
      ValueError: if the folder has another training.
    """
    if folder is not None:
        _keep_settings(recipe, config, folder)
    first, root = few_shot.learned_by(config).first_state().params, jax.random.key(config.seed)
    learner = _learner(recipe, config, mesh)
    start = state = learner.init(first)
    if folder is not None:
        with contextlib.suppress(FileNotFoundError):
            start = state = rj.checkpoint.restore(folder / "checkpoints", like=start)
    tasks: Any = few_shot.training_tasks(config, splits)
    step, begin = int(start.step), time.perf_counter()
    for state, _ in rj.train(
        learner,
        start,
        recipe.tasks(tasks) if recipe.tasks else tasks,
        jax.random.fold_in(root, 1),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    ):
        now = int(state.step)
        if folder is not None and (now % config.save_every == 0 or now == config.meta_steps):
            rj.checkpoint.save(folder / "checkpoints", state)
            seconds = round(time.perf_counter() - begin, 1)
            with (folder / "times.jsonl").open("a") as file:
                file.write(json.dumps({"from": step, "seconds": seconds}) + "\n")
            step, begin = now, time.perf_counter()
    state = jax.block_until_ready(state)
    return state._replace(params=state.opt_state.mean) if recipe.averaged else state


def _keep_settings(recipe: Recipe, config: FewShotConfig, folder: Path) -> None:
    """Writes what the training in a folder is of, or checks it."""
    own = {"averaged": recipe.averaged, "mean_scale": recipe.mean_scale}
    path, settings = folder / "settings.json", {**dataclasses.asdict(config), **own}
    if not (folder / "checkpoints").exists():
        folder.mkdir(parents=True, exist_ok=True)
        json_files.write_json(path, settings)
    elif not path.exists() or {**DEFAULTS, **json.loads(path.read_text())} != settings:
        raise ValueError(f"{folder} is another training: give another --runs, or remove it.")


def cells(found: dict[str, Any]) -> list[str]:
    return [f"{found['accuracy'][mode]:.1f} ± {found['ci95'][mode]:.1f}" for mode in MODES]


def columns(preset: str) -> list[str]:
    """Of the table: each evaluation has both modes."""
    found = ["recipe", "meta steps", "tasks", *(f"{mode}, %" for mode in MODES)]
    if _has_other_batches(preset):
        found += [f"balanced, {mode}, %" for mode in MODES]
    return found


def _has_other_batches(preset: str) -> bool:
    """Whether mini-batches of the paper's evaluation are other than of one image of each class."""
    return presets.PAPER[preset].eval_batch != presets.PAPER[preset].ways
