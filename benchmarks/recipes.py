"""Ways to train that differ from the paper's, at an equal number of inner gradients: a table.

    python -m benchmarks recipes --data DIR [--preset o15] [--meta-steps 1000] [--only NAME ...]

Each is a row of the paper with something changed. The scores are on the last 100 characters of the
1,200 for training, kept apart with all their rotations: no test character has a part in the choice.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import arm_files, measure
from benchmarks.time_to_accuracy import keep_apart
from reptile_jax import datasets, evaluate, fewshot, omniglot, presets, processes
from reptile_jax.devices import Mesh
from reptile_jax.fewshot_problem import (
    classifier_left_alone,
    held_out_tasks,
    meta_optimizer,
    meta_rate_schedule,
    problem_of,
    training_tasks,
)
from reptile_jax.reptile import MetaGradient, inner_loop, meta_learner, reptile
from reptile_jax.task_axis import TaskGradient
from reptile_jax.train import train

Config = presets.FewShotImages


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a training differs from the paper's; by default in nothing."""

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the configuration
    outer: Callable[[Config], optax.GradientTransformation] | None = None
    inner: Callable[[Config], optax.GradientTransformation] | None = None
    meta_gradient: Callable[..., MetaGradient] = reptile  # of a loss and the inner optimiser
    averaged: bool = False  # scores the mean of the parameters over the second half of training


def _cosine(config: Config) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(config.meta_rate, config.meta_steps))


def _adam(config: Config) -> optax.GradientTransformation:
    return optax.adam(meta_rate_schedule(config))


def _classifier_as_initialised(config: Config) -> optax.GradientTransformation:
    return classifier_left_alone(meta_optimizer(config))


def _inner_from(first: float) -> Callable[[Config], optax.GradientTransformation]:
    """The presets' inner Adam, its rate annealed from `first` to theirs over the whole training.

    The count of steps is in the inner state: training hands it on, evaluation starts from it.
    The presets' is 0.001 for 5 ways and 0.0005 for 20.
    """

    def inner(config: Config) -> optax.GradientTransformation:
        rate = optax.linear_schedule(
            -first, -config.inner_rate, config.meta_steps * config.inner_steps
        )
        rms = optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True)
        return optax.chain(rms, optax.scale_by_schedule(rate))

    return inner


def _later_steps(first: float) -> Callable[..., MetaGradient]:
    """Reptile in which the first inner step's update counts `first` times."""

    def meta_gradient(loss_fn, inner_optimizer):
        adapt = functools.partial(inner_loop, loss_fn, inner_optimizer)

        def estimate(params, opt_state, task):
            head = jax.tree.map(lambda leaf: leaf[:1], task.support)
            tail = jax.tree.map(lambda leaf: leaf[1:], task.support)
            one = adapt(params, head, opt_state)
            end = adapt(one.params, tail, one.opt_state)
            weigh = lambda start, after, last: first * (start - after) + (after - last)
            delta = jax.tree.map(weigh, params, one.params, end.params)
            return TaskGradient(delta, end.opt_state, jnp.concatenate([one.losses, end.losses]))

        return MetaGradient(inner_optimizer.init, estimate)

    return meta_gradient


_MOMENTUM = {"meta_momentum": 0.9}
_ZERO = {"classifier": "zero"}
RECIPES: dict[str, Recipe] = {
    "the paper": Recipe(),
    "outer step 2": Recipe({"meta_rate": 2.0}),
    "momentum 0.9, outer step 0.1": Recipe({**_MOMENTUM, "meta_rate": 0.1}),
    "momentum 0.9, outer step 0.3": Recipe({**_MOMENTUM, "meta_rate": 0.3}),
    "momentum 0.9, outer step 1": Recipe(_MOMENTUM),
    "Adam outside, 0.001": Recipe({"meta_rate": 1e-3}, outer=_adam),
    "Adam outside, 0.003": Recipe({"meta_rate": 3e-3}, outer=_adam),
    "outer step by a cosine": Recipe(outer=_cosine),
    "outer step kept, iterates averaged": Recipe({"meta_rate_final": 1.0}, averaged=True),
    "inner rate 0.002": Recipe({"inner_rate": 2e-3}),
    "inner rate 0.004": Recipe({"inner_rate": 4e-3}),
    "inner rate 0.008": Recipe({"inner_rate": 8e-3}),
    "inner rate from 0.004": Recipe(inner=_inner_from(4e-3)),
    "ten inner steps": Recipe({"inner_steps": 10}),
    "a meta-batch of one": Recipe({"meta_batch": 1}),
    "a meta-batch of two": Recipe({"meta_batch": 2}),
    "a meta-batch of ten": Recipe({"meta_batch": 10}),
    "inner state carried": Recipe({"inner_state": "carried"}),
    "first inner step left out": Recipe(meta_gradient=_later_steps(0.0)),
    "first inner step doubled": Recipe(meta_gradient=_later_steps(2.0)),
    "classifier as initialised": Recipe(outer=_classifier_as_initialised),
    "classifier at zero": Recipe(_ZERO),
    # What helped, together.
    "inner rate 0.002, momentum 0.9, outer step 0.3": Recipe(
        {"inner_rate": 2e-3, **_MOMENTUM, "meta_rate": 0.3}
    ),
    "inner rate 0.004, momentum 0.9, outer step 0.1": Recipe(
        {"inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.1}
    ),
    "inner rate 0.004, momentum 0.9, outer step 0.3": Recipe(
        {"inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.3}
    ),
    "inner rate from 0.004, momentum 0.9, outer step 0.3": Recipe(
        {**_MOMENTUM, "meta_rate": 0.3}, inner=_inner_from(4e-3)
    ),
    "inner rate 0.004, a meta-batch of two": Recipe({"inner_rate": 4e-3, "meta_batch": 2}),
    "classifier at zero, inner rate 0.002": Recipe({**_ZERO, "inner_rate": 2e-3}),
    "classifier at zero, inner rate 0.004": Recipe({**_ZERO, "inner_rate": 4e-3}),
    "classifier at zero, inner rate 0.008": Recipe({**_ZERO, "inner_rate": 8e-3}),
    "classifier at zero, inner rate 0.004, momentum 0.9, outer step 0.1": Recipe(
        {**_ZERO, "inner_rate": 4e-3, **_MOMENTUM, "meta_rate": 0.1}
    ),
    "classifier at zero, inner rate 0.004, ten inner steps": Recipe(
        {**_ZERO, "inner_rate": 4e-3, "inner_steps": 10}
    ),
    "classifier at zero, inner rate 0.004, a meta-batch of two": Recipe(
        {**_ZERO, "inner_rate": 4e-3, "meta_batch": 2}
    ),
    "classifier at zero, inner rate from 0.004": Recipe(_ZERO, inner=_inner_from(4e-3)),
    "classifier at zero, inner rate from 0.004, a meta-batch of two": Recipe(
        {**_ZERO, "meta_batch": 2}, inner=_inner_from(4e-3)
    ),
}


def main(argv: list[str]) -> int:
    """Trains by each recipe that was not tried yet, and writes the table of all that were."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Omniglot")
    parser.add_argument("--preset", choices=("o15", "o120"), default="o15", help="what is changed")
    parser.add_argument("--meta-steps", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--tasks", type=int, default=400, help="held-out tasks")
    parser.add_argument("--only", nargs="+", choices=RECIPES, metavar="NAME", default=[*RECIPES])
    parser.add_argument("--devices", type=int, help="that share the tasks")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.meta_steps, args.tasks, args.only = 4, 2, args.only[:2]
    # On one device unless told otherwise, for a carried inner state has to be.
    with processes.joined(processes.Sharing(args.devices), None, share=False) as (mesh, _):
        splits = keep_apart(omniglot.load_omniglot(args.data), 100)
        rows, data = [], {}
        for name, recipe in RECIPES.items():
            config = configured(recipe, args.meta_steps, args.preset)
            settings = {
                "recipe": name,
                **dataclasses.asdict(config),
                "held-out tasks": args.tasks,
            }
            folder = measure.RESULTS / "recipes" / args.preset
            arm = name.replace(",", "").replace(" ", "-")
            found = arm_files.stored(folder, arm, settings)
            if found is None and name in args.only:
                measured = functools.partial(tried, recipe, config, splits, args.tasks, mesh)
                found = arm_files.run(folder, arm, settings, measured)
            if found is not None:
                data[name] = found
                rows.append([name, f"{config.meta_steps:,}", *_cells(found["data"])])
    title = f"{args.preset} by other recipes: the inner gradients of {args.meta_steps:,} meta steps"
    asked = f"--preset {args.preset} --meta-steps {args.meta_steps} --tasks {args.tasks}"
    name = f"recipes_{args.preset}_{args.meta_steps}"
    measure.show(title, COLUMNS, rows)
    measure.store(
        name,
        title,
        COLUMNS,
        rows,
        data,
        command=f"recipes --data DIR {asked}",
        on=measure.machine(),
    )
    return 0


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
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The paper's training with something changed, at as many inner gradients.

    The scores, with 95% intervals over the tasks, are on tasks of 100 characters of the training
    split that are kept apart with all their turns, the same tasks for every recipe; one training
    each. No test character has a part in the choice.
    """
    problem = problem_of(config, mesh)
    inner = recipe.inner(config) if recipe.inner else problem.inner_optimizer
    learner = problem.learner
    if recipe.inner or recipe.outer or recipe.meta_gradient is not reptile:
        learner = meta_learner(
            recipe.meta_gradient(problem.loss_fn, inner),
            recipe.outer(config) if recipe.outer else meta_optimizer(config),
            inner_state=config.inner_state,
            mesh=mesh,
        )
    first = learner.init(problem.first_state().params)
    root, begin = jax.random.key(config.seed), time.perf_counter()
    total, number = jax.tree.map(jnp.zeros_like, first.params), 0
    for state, _ in train(
        learner,
        first,
        training_tasks(config, splits),
        jax.random.fold_in(root, 1),
        until=config.meta_steps,
        meta_batch=config.meta_batch,
        steps_per_dispatch=config.steps_per_dispatch,
    ):
        if recipe.averaged and int(state.step) > config.meta_steps // 2:
            total, number = jax.tree.map(jnp.add, total, state.params), number + 1
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begin
    params = jax.tree.map(lambda leaf: leaf / number, total) if number else state.params
    result = evaluate.evaluate(
        problem.loss_fn,
        fewshot.accuracy(problem.model.apply),
        inner,
        params,
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


COLUMNS = ["recipe", "meta steps", "transductive, %", "non-transductive, %"]
