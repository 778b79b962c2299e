"""Other ways to evaluate a training of a recipe: a table.

    python -m benchmarks evaluations --data DIR --preset o120 [--recipe NAME] [--only NAME ...]

What is evaluated is trained first if it is not among the trainings of `recipes`. The scores are on
the characters that `recipes` sets apart.
"""

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import reptile_jax as rj
from benchmarks import records, tables
from benchmarks.paper import recipes
from benchmarks.paper.recipe_list import RECIPES
from benchmarks.paper.scoring import MODES, PAPER, Evaluation, balanced
from benchmarks.speed.time_to_accuracy import set_apart
from reptile_jax.app import presets

EVALUATIONS: dict[str, Evaluation] = {
    "the paper's": PAPER,
    "half the rate, 100 steps": Evaluation({"eval_steps": 100}, rate=0.5),
    "class means, scale 0.1": Evaluation(mean_scale=0.1),
    "class means, scale 0.1, steps of length 0": Evaluation(mean_scale=0.1, rate=0.0),
    "balanced": balanced(20),
    "balanced, half the rate, 50 steps": balanced(20, 50, rate=0.5),
    "balanced, classifier's rate times 5": balanced(20, classifier_rate=5.0),
    "balanced, classifier's rate times 0.3": balanced(20, classifier_rate=0.3),
    "balanced, class means, scale 0.1": balanced(20, mean_scale=0.1),
    "balanced, class means, scale 0.02": balanced(20, mean_scale=0.02),
    "balanced, class means, scale 0.005": balanced(20, mean_scale=0.005),
    "balanced, images distorted by 0.03": balanced(20, distorted=0.03),
    "balanced, images distorted by 0.06": balanced(20, distorted=0.06),
}
RECIPE = "pairs, balanced batches, inner rate 0.002"
COLUMNS = ["evaluation", "tasks", *(f"{mode}, %" for mode in MODES)]


def main(argv: Sequence[str]) -> int:
    """Evaluates a training in the ways that are to be tried, and writes the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks evaluations")
    recipes.add_options(parser)
    parser.add_argument("--recipe", choices=RECIPES, metavar="NAME", default=RECIPE)
    parser.add_argument("--only", nargs="+", choices=EVALUATIONS, default=[*EVALUATIONS])
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    path = recipes.record(args, "evaluations")
    asked = f"--preset {args.preset} --meta-steps {args.meta_steps} --tasks {args.tasks}"
    title = f"{args.preset} by other evaluations, after the inner gradients of {args.meta_steps:,}"
    command = records.command_of(["evaluations", "--data", "DIR", asked])
    about = {"title": f"{title} meta steps", "command": command}
    splits = set_apart(rj.datasets.load_omniglot(args.data), 100)
    recipe = RECIPES[args.recipe]
    config = recipes.configured(recipe, args.meta_steps, args.preset)
    state = recipes.trained(recipe, config, splits, recipes.folder_of(args.recipe, args))
    score = functools.partial(
        recipes.score_of,
        recipe,
        config,
        state,
        splits=splits,
        row=presets.PAPER[args.preset],
        num_tasks=args.tasks,
    )
    for name in args.only:
        settings = {
            "recipe": args.recipe,
            **dataclasses.asdict(config),
            "evaluation": name,
            "held-out tasks": args.tasks,
        }
        arm = recipes.arm_of(f"{args.recipe}, {name}")
        measured = functools.partial(score, EVALUATIONS[name])
        records.run(path, about, arm, settings, measured, defaults=recipes.DEFAULTS)
    rows = tabulated(path)
    records.update(path, {**about, "machine": records.machine(), "columns": COLUMNS, "rows": rows})
    tables.show(tables.Table(about["title"], COLUMNS, rows))
    return 0


def tabulated(path: Path) -> list[list[str]]:
    """A row for each evaluation of each training."""
    rows = []
    for arm in records.newest(path).values():
        settings = arm["settings"]
        label = settings["evaluation"]
        if settings["recipe"] != RECIPE:
            label = f"{settings['recipe']}: {label}"
        rows.append([label, f"{settings['held-out tasks']:,}", *recipes.cells(arm["data"])])
    return rows
