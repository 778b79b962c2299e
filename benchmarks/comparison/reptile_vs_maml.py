"""Reptile against MAML: chosen rates, time, accuracy at equal budgets, and stability.

Arms build on each other: rates are chosen on validation tasks first, and the measured times give
the numbers of meta steps that take equal time.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.comparison import contest, experiment, outcomes, seeds, stability
from benchmarks.comparison.contest import GRADIENTS, META_BATCH, SIZES, Problem
from benchmarks.comparison.experiment import Asked

_TUNING_SEED = 1000  # from here on; of no run that is scored


def main(argv: Sequence[str]) -> int:
    title = "Reptile, FOMAML and MAML at equal budgets, and over rates"
    return experiment.main(argv, reptile_vs_maml, SIZES, title)


def reptile_vs_maml(asked: Asked) -> None:
    """Reptile against MAML: time, accuracy at equal budgets, and stability."""
    size = asked.size
    for name in stability.METHODS:
        measured = functools.partial(stability.measured, name, size)
        asked.run(stability.arm(name), stability.settings(name, size), measured)
    for kind in outcomes.PROBLEMS:
        make = contest.sine if kind == "sine" else functools.partial(contest.omniglot, asked.data)
        _contest(kind, make(size), asked)


def _contest(kind: str, problem: Problem, asked: Asked) -> None:
    path, size = asked.path, asked.size
    measured = functools.partial(_times, problem, size.timing_rounds)
    asked.run(f"{kind}-time", outcomes.time_settings(kind, size), measured)
    for method in GRADIENTS:
        measured = functools.partial(_tuning, problem, method)
        settings = outcomes.tuning_settings(kind, method, size)
        asked.run(f"{kind}-{method}-rates", settings, measured)
    for method, of_method in outcomes.lengths(path, kind, size).items():
        chosen = outcomes.choice(path, kind, method, size)
        for steps in of_method:
            settings = outcomes.run_settings(kind, method, chosen, steps, size)
            number = settings["seeds"]
            measured = functools.partial(_trained, problem, method, chosen, steps, number)
            asked.run(f"{kind}-{method}-{steps}", settings, measured)


def _times(problem: Problem, rounds: int) -> dict[str, Any]:
    """Milliseconds of a meta step of one run, compiled, many to a dispatch; methods take turns."""

    def stepping(entrant: contest.Entrant):
        rates = [[entrant.inner_rates[0]], [entrant.outer_rates[0]]]
        held = [seeds.first(entrant.method, problem.init, [0], *rates)]

        def arm():
            held.append(_advance(problem, entrant, held.pop(), entrant.training))
            return held[0].state.step

        return arm

    def _advance(problem, entrant, runs, tasks):
        return seeds.advance(
            entrant.method,
            problem.loss_fn,
            runs,
            tasks,
            problem.steps_timed,
            10**9,
            meta_batch=META_BATCH,
            side_by_side=False,
        )

    arms = {name: stepping(entrant) for name, entrant in problem.entrants.items()}
    measured = timing.interleaved(arms, repeats=rounds, seconds=1.0)
    return {
        name: timing.spread([ms / problem.steps_timed for ms in times["ms"]])
        for name, times in measured.items()
    }


def _train_and_score(problem: Problem, entrant, runs, scored, steps, key) -> Any:
    """Scores, leaves `[runs, points]`: the mean over the tasks scored."""
    runs = seeds.advance(
        entrant.method,
        problem.loss_fn,
        runs,
        entrant.training,
        steps,
        steps,
        meta_batch=META_BATCH,
        side_by_side=problem.side_by_side,
    )
    scores = seeds.scores(
        entrant.method.inner,
        problem.loss_fn,
        problem.score_fn,
        runs,
        scored,
        key,
        num_tasks=problem.num_tasks,
        score_every=problem.score_every,
        side_by_side=problem.side_by_side,
    )
    means = jax.tree.map(lambda leaf: np.mean(leaf, 1), jax.device_get(scores))
    return {"scores": means, "left out": runs.left_out}


def _tuning(problem: Problem, method: str) -> dict[str, Any]:
    """Every pair of rates on validation tasks: no test class has a part in it.

    Scores are means over the seeds, and not finite where one is not.
    """
    entrant, number = problem.entrants[method], problem.tuning_seeds
    rates = [(inner, outer) for inner in entrant.inner_rates for outer in entrant.outer_rates]
    inner, outer = np.repeat(rates, number, axis=0).T
    numbers = np.tile(_TUNING_SEED + np.arange(number), len(rates))
    runs = seeds.first(entrant.method, problem.init, numbers, inner, outer)
    found = _train_and_score(
        problem,
        entrant,
        runs,
        problem.validation,
        problem.tuning_steps,
        jax.random.key(2),
    )
    by_seed = lambda leaf: np.reshape(leaf, (len(rates), number, *np.shape(leaf)[1:]))
    return {
        "rates": rates,
        "scores": jax.tree.map(lambda leaf: by_seed(leaf).mean(1), found["scores"]),
        "left out": by_seed(found["left out"]).sum(1),
    }


def _trained(problem: Problem, method: str, chosen, steps: int, number: int) -> dict[str, Any]:
    """All seeds at the rates chosen, scored on the test tasks, the same for all."""
    entrant, ones = problem.entrants[method], np.ones(number)
    rates = chosen["inner rate"] * ones, chosen["outer rate"] * ones
    runs = seeds.first(entrant.method, problem.init, range(number), *rates)
    return _train_and_score(problem, entrant, runs, problem.held_out, steps, jax.random.key(3))
