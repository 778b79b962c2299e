"""Ways to train that differ from the paper's, at an equal number of inner gradients: a table.

    python -m benchmarks recipes --data DIR [--meta-steps 2000] [--only NAME ...]

Each is o15 with a few values changed. The scores are on the last 100 characters of the 1,200 for
training, kept apart with all their rotations: no test character has a part in the choice.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import arm_files, measure
from benchmarks.time_to_accuracy import keep_apart
from reptile_jax import datasets, evaluate, fewshot, omniglot, presets, processes
from reptile_jax.devices import Mesh
from reptile_jax.fewshot_run import held_out_tasks, problem_of, training_tasks
from reptile_jax.train import train

_MOMENTUM = {"meta_momentum": 0.9}
RECIPES: dict[str, dict[str, Any]] = {
    "the paper": {},
    "outer step 2": {"meta_rate": 2.0},
    "momentum 0.9, outer step 0.1": {**_MOMENTUM, "meta_rate": 0.1},
    "momentum 0.9, outer step 0.3": {**_MOMENTUM, "meta_rate": 0.3},
    "momentum 0.9, outer step 0.7": {**_MOMENTUM, "meta_rate": 0.7},
    "momentum 0.5": {"meta_momentum": 0.5},
    "inner rate 0.0005": {"inner_rate": 5e-4},
    "inner rate 0.002": {"inner_rate": 2e-3},
    "inner rate 0.004": {"inner_rate": 4e-3},
    "ten inner steps": {"inner_steps": 10},
    "a meta-batch of two": {"meta_batch": 2},
    "a meta-batch of ten": {"meta_batch": 10},
}


def main(argv: list[str]) -> int:
    """Trains by each recipe that was not tried yet, and writes the table of all that were."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--meta-steps", type=int, default=2000, help="of the paper's recipe")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME", default=[*RECIPES])
    parser.add_argument("--devices", type=int, help="that share the tasks")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    with processes.joined(processes.Sharing(args.devices), None) as (mesh, _):
        splits = keep_apart(omniglot.load_omniglot(args.data), 100)
        rows, data = [], {}
        for name, changes in RECIPES.items():
            config = recipe(changes, args.meta_steps)
            settings = {**dataclasses.asdict(config), "held-out tasks": args.tasks}
            folder, arm = measure.RESULTS / "recipes", name.replace(", ", "-").replace(" ", "-")
            found = arm_files.stored(folder, arm, settings)
            if found is None and name in args.only:
                measured = functools.partial(tried, config, splits, args.tasks, mesh)
                found = arm_files.run(folder, arm, settings, measured)
            if found is not None:
                data[name] = found
                rows.append([name, f"{config.meta_steps:,}", *_cells(found["data"])])
    measure.show(TITLE, COLUMNS, rows)
    measure.store(
        f"recipes_{args.meta_steps}",
        TITLE,
        COLUMNS,
        rows,
        data,
        command=f"recipes --data DIR --meta-steps {args.meta_steps}",
        on=measure.machine(),
    )
    return 0


def recipe(changes: dict[str, Any], meta_steps: int) -> presets.FewShotImages:
    """o15 with its changes, over as many inner gradients as o15 has in `meta_steps`."""
    start = dataclasses.replace(presets.PAPER["o15"], meta_steps=meta_steps)
    config = dataclasses.replace(start, **changes)
    gradients = lambda config: config.meta_batch * config.inner_steps
    steps = meta_steps * gradients(start) // gradients(config)
    return dataclasses.replace(config, meta_steps=max(1, steps))


def tried(
    config: presets.FewShotImages,
    splits: datasets.ImageSplits,
    num_tasks: int,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Trains as configured and scores: per cent, by the use of batch norm, with intervals."""
    problem = problem_of(config, mesh)
    root, begin = jax.random.key(config.seed), time.perf_counter()
    for state, _ in train(  # noqa: B007
        problem.learner,
        problem.first_state(),
        training_tasks(config, splits),
        jax.random.fold_in(root, 1),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    ):
        pass
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    result = evaluate.evaluate(
        problem.loss_fn,
        fewshot.accuracy(problem.model.apply),
        problem.inner_optimizer,
        state.params,
        held_out_tasks(config, splits),
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


def _cells(found: dict[str, Any]) -> list[str]:
    modes = ("transductive", "non-transductive")
    return [f"{found['accuracy'][mode]:.1f} ± {found['interval'][mode]:.1f}" for mode in modes]


TITLE = "Omniglot 5-way 1-shot by other recipes, at equal numbers of inner gradients"
COLUMNS = ["recipe", "meta steps", "transductive, %", "non-transductive, %"]
