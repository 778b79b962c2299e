"""Families of differential equations: what a learned start gains, and the time beside opifex's.

    python -m benchmarks equations [--only burgers heat published speed] [--seeds 3]
        [--opifex PYTHON]

`burgers` and `heat` train by `reptile-jax train`'s defaults. `published` is opifex's example of
meta-learning, and `speed` its time, in a Python of its own that has opifex (`pip install opifex`).
"""

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reptile_jax as rj
from benchmarks import records
from benchmarks.uses import opifex_example, parts
from reptile_jax.app.config import EquationsConfig
from reptile_jax.app.experiments import EXPERIMENTS, equations

STEPS = (0, 10, 100, 1000)  # inner steps at which held-out equations are scored
# Of held-out equations, by family: inside the range of training, and apart from it.
PLACES = {
    "burgers": {"inside": (0.005, 0.05), "below": (0.0025, 0.005), "above": (0.05, 0.1)},
    "heat": {"inside": (0.05, 0.2), "below": (0.025, 0.05), "above": (0.2, 0.4)},
}


def main(argv: Sequence[str]) -> int:
    """Measures what is missing, and writes the tables."""
    args = _arguments(argv)
    measured = {
        "burgers": functools.partial(gain, "burgers"),
        "heat": functools.partial(gain, "heat"),
        "published": opifex_example.published,
        "speed": opifex_example.speed,
    }
    for part in args.only:
        measured[part](args)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    names = ("burgers", "heat", "published", "speed")
    parser = argparse.ArgumentParser(prog="python -m benchmarks equations")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", default=names)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--opifex", type=Path, help="the Python that has opifex, for speed")
    parser.add_argument("--fresh", action="store_true", help="measure again, and keep both")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    parser.add_argument("--out", type=Path, default=records.RESULTS, help="where results go")
    args = parser.parse_args(argv)
    args.tasks, args.meta_steps = (2, 2) if args.quick else (16, 300)
    args.folder = (args.out / "quick" if args.quick else args.out) / "uses"
    if "speed" in args.only and args.opifex is None:
        parser.error("speed needs --opifex PYTHON, the Python that has opifex.")
    return args


# The gain -----------------------------------------------------------------------------------------

# By start, the rate and β1 of Adam that were the best for it on other viscosities of Burgers'
# equation; Reptile's are the run's own.
ADAPTING = {"Reptile": None, "joint training": (3e-3, 0.9), "random": (1e-2, 0.9)}
NAMES = {"loss": "residual loss", "error": "relative L2 error"}


def gain(family: str, args: argparse.Namespace) -> None:
    """Learned, random and jointly trained starts on held-out equations: a table of both scores."""
    path, config = args.folder / f"equations_{family}.json", EXPERIMENTS[family].start
    if args.quick:
        config = dataclasses.replace(config, meta_steps=2)
    about = parts.about(
        f"{family}: held-out equations after some inner steps, the mean of {args.seeds} trainings "
        "and their range",
        ["--only", family],
    )
    found: dict[str, list[Any]] = {start: [] for start in ADAPTING}
    for start, seed in itertools.product(ADAPTING, range(args.seeds)):
        config = dataclasses.replace(config, seed=seed)
        own = {"held-out tasks": args.tasks, "Adam": ADAPTING[start]}
        settings = {**dataclasses.asdict(config), **own}
        measured = functools.partial(gained, config, start, args.tasks)
        name = f"{start}, seed {seed}"
        arm = records.run(path, about, name, settings, measured, fresh=args.fresh)
        found[start].append(arm["data"]["scores"])
    rows = [
        [f"{place}: {start}", NAMES[measure], *cells]
        for place in PLACES[family]
        for measure in NAMES
        for start in ADAPTING
        for cells in [parts.over_seeds([scores[place][measure] for scores in found[start]])]
    ]
    columns = ["viscosities: start", "measure", *(f"{step:,} steps" for step in STEPS)]
    parts.write(path, about, columns, rows)


def gained(config: EquationsConfig, start: str, num_tasks: int) -> dict[str, Any]:
    """The scores of one start on held-out equations, by place, and the seconds of its training.

    All start from a run's own first state. Joint training is Reptile on tasks that are another
    equation at every inner step: as many gradients on as many points.
    """
    experiment = equations.build(config)
    params, opt_state, begin = experiment.first_state().params, None, time.perf_counter()
    tasks = {"Reptile": experiment.training_tasks, **experiment.rivals}[start]
    if tasks is not None:
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        how = {"until": config.meta_steps, "meta_batch": config.meta_batch}
        first = experiment.learner.init(params)
        *_, (state, _) = rj.train(experiment.learner, first, tasks, key, **how)
        params, opt_state = jax.block_until_ready((state.params, state.inner_opt_state))
    seconds = time.perf_counter() - begin
    if (how := ADAPTING[start]) is not None:
        adam = optax.adam(how[0], b1=how[1])
        experiment, opt_state = dataclasses.replace(experiment, inner_optimizer=adam), None
    scores = {
        place: scored(experiment, config, viscosity, num_tasks, params, opt_state)
        for place, viscosity in PLACES[config.equation].items()
    }
    return {"scores": scores, "training seconds": seconds}


def scored(experiment, config, viscosity, num_tasks, params, opt_state) -> dict[str, list[float]]:
    """The mean loss and error over held-out equations at each of `STEPS`."""
    result = rj.evaluate(
        experiment.loss_fn,
        experiment.score_fn,
        experiment.inner_optimizer,
        params,
        held_out(config, viscosity, num_tasks),
        opt_state=opt_state,
        score_every=STEPS[1],
    )
    at = [result.steps.tolist().index(step) for step in STEPS]
    return {name: mean[at].tolist() for name, mean in result.mean.items()}


def held_out(config: EquationsConfig, viscosity: tuple[float, float], number: int) -> rj.Task:
    """Equations at viscosities in the middle of equal parts of a range, `[number, ...]`.

    The loss at the lowest is many times that at the highest: drawn ones would differ by luck.
    """
    low, high = viscosity
    middles = low + (high - low) * (np.arange(number) + 0.5) / number
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(
            equations.tasks(config, STEPS[-1], (middle, middle)).sample(jax.random.key(10 + index))
            for index, middle in enumerate(middles.tolist())
        ),
    )
