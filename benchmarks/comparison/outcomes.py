"""The arms of the contest: their settings, and what is stored of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plots, records
from benchmarks.comparison.contest import GRADIENTS, INNER_STEPS, META_BATCH, RATES, Size

BASES = ("meta steps", "gradient evaluations", "time")
PROBLEMS = ("sine", "omniglot")
SCORES = {"sine": ("error",), "omniglot": ("transductive", "non-transductive")}


def budgets(kind: str, size: Size) -> tuple[int, ...]:
    """In MAML's meta steps."""
    return size.sine_budgets if kind == "sine" else size.omniglot_budgets


def seeds(kind: str, size: Size) -> int:
    """How many seeds a problem is trained from."""
    return size.sine_seeds if kind == "sine" else size.omniglot_seeds


def equal_steps(times: Mapping[str, float], method: str, basis: str, maml_steps: int) -> int:
    """The meta steps that cost `method` as much as MAML's `maml_steps`, by one of `BASES`."""
    cost = {"meta steps": dict.fromkeys(times, 1.0), "gradient evaluations": GRADIENTS}
    of = cost.get(basis, times)
    return max(1, round(maml_steps * of["MAML"] / of[method]))


def lengths(path: Path, kind: str, size: Size) -> dict[str, dict[int, set[tuple[int, str]]]]:
    """By method and meta steps, which budgets and bases a training of that length is for."""
    times = milliseconds(path, kind, size)
    found: dict[str, dict[int, set[tuple[int, str]]]] = {method: {} for method in GRADIENTS}
    for method in found if times else ():
        for budget in budgets(kind, size):
            for basis in BASES:
                steps = equal_steps(times, method, basis, budget)
                found[method].setdefault(steps, set()).add((budget, basis))
    return found


# Each arm's settings: what its figures depend on.


def _common(kind: str, size: Size) -> dict[str, Any]:
    tasks = size.sine_tasks if kind == "sine" else size.omniglot_tasks
    eval_steps = 32 if kind == "sine" else size.omniglot_eval_steps
    return {
        "problem": kind,
        "tasks scored": tasks,
        "inner steps scored": eval_steps,
        "inner steps": INNER_STEPS,
        "meta batch": META_BATCH,
    }


def time_settings(kind: str, size: Size) -> dict[str, Any]:
    return {"problem": kind, "rounds": size.timing_rounds, "meta batch": META_BATCH}


def tuning_settings(kind: str, method: str, size: Size) -> dict[str, Any]:
    if kind == "sine":
        steps, number = size.sine_tuning_steps, size.sine_tuning_seeds
    else:
        steps, number = size.omniglot_tuning_steps, size.omniglot_tuning_seeds
    rates = dict(zip(("inner rates", "outer rates"), RATES[kind][method], strict=True))
    common = {**_common(kind, size), "method": method, "meta steps": steps, "seeds": number}
    return {**common, **rates}


def run_settings(
    kind: str, method: str, chosen: Mapping[str, Any], steps: int, size: Size
) -> dict[str, Any]:
    rates = {"inner rate": chosen["inner rate"], "outer rate": chosen["outer rate"]}
    common = {
        **_common(kind, size),
        "method": method,
        "meta steps": steps,
        "seeds": seeds(kind, size),
    }
    return {**common, **rates}


# What is stored, as the next arms and the page need it.


def milliseconds(path: Path, kind: str, size: Size) -> dict[str, float] | None:
    """Of a meta step, by method; None if not measured yet."""
    found = times(path, kind, size)
    return found and {name: times["median"] for name, times in found.items()}


def times(path: Path, kind: str, size: Size) -> dict[str, Any] | None:
    """Milliseconds of a meta step in every round, by method; None if not measured yet."""
    arm = records.stored(path, f"{kind}-time", time_settings(kind, size))
    return arm and arm["data"]


def at_an_end(path: Path, kind: str, size: Size) -> dict[str, list[str]]:
    """By method, those of its chosen rates that are the lowest or highest of their grid."""
    found = {}
    for method, (inner, outer) in RATES[kind].items():
        chosen = choice(path, kind, method, size)
        if chosen is not None:
            rates = (("inner", inner), ("outer", outer))
            ends = [n for n, grid in rates if chosen[f"{n} rate"] in (min(grid), max(grid))]
            found[method] = ends
    return found


def choice(path: Path, kind: str, method: str, size: Size) -> dict[str, Any] | None:
    """The rates, and by score the inner steps to score after, that do best on validation tasks.

    With two scores, one for each use of batch norm, the rates are those with the best mean of the
    two.
    """
    settings = tuning_settings(kind, method, size)
    arm = records.stored(path, f"{kind}-{method}-rates", settings)
    if arm is None:
        return None
    sign = 1 if kind == "omniglot" else -1
    found = {
        name: np.nan_to_num(sign * np.array(values, float), nan=-np.inf)[:, 1:]
        for name, values in arm["data"]["scores"].items()
    }  # [cells, points after the first]
    cell = int(np.argmax(np.mean([values.max(1) for values in found.values()], axis=0)))
    point = {name: 1 + int(np.argmax(values[cell])) for name, values in found.items()}
    inner, outer = arm["data"]["rates"][cell]
    return {"inner rate": inner, "outer rate": outer, "point": point}


def results(path: Path, kind: str, size: Size) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """By method, meta steps and score: the score of each seed, `[seeds]`."""
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {method: {} for method in GRADIENTS}
    for method, of_method in lengths(path, kind, size).items():
        chosen = choice(path, kind, method, size)
        for steps in of_method if chosen else ():
            settings = run_settings(kind, method, chosen, steps, size)
            arm = records.stored(path, f"{kind}-{method}-{steps}", settings)
            if arm is not None:
                found[method][steps] = {
                    name: np.array(values, float)[:, chosen["point"][name]]
                    for name, values in arm["data"]["scores"].items()
                }
    return found


def missing(path: Path, size: Size) -> list[str]:
    """The arms of this size that are not measured yet."""
    found = []
    for kind in PROBLEMS:
        if milliseconds(path, kind, size) is None:
            found.append(f"{kind}-time, and all that follows from it")
            continue
        there = results(path, kind, size)
        for method, of_method in lengths(path, kind, size).items():
            if choice(path, kind, method, size) is None:
                found.append(f"{kind}-{method}-rates, and all that follows from it")
            else:
                found += [f"{kind}-{method}-{n}" for n in of_method if n not in there[method]]
    return found


def draw(path: Path, size: Size) -> None:
    """A row of panels for each score: by meta steps, by gradient evaluations, by seconds."""
    for kind in PROBLEMS:
        found, times = results(path, kind, size), milliseconds(path, kind, size)
        if times is None or not all(found.values()):
            continue
        for score in SCORES[kind]:
            error = score == "error"
            curves: dict[str, dict[str, Any]] = {basis: {} for basis in BASES}
            for method, runs in found.items():
                steps = sorted(runs)
                values = np.stack([runs[n][score] for n in steps], 1) * (1 if error else 100)
                per_step = {
                    "meta steps": 1,
                    "gradient evaluations": META_BATCH * GRADIENTS[method],
                    "time": times[method] / 1000,
                }
                for basis, cost in per_step.items():
                    curves[basis][method] = (np.array(steps) * cost, values)
            label = {"time": "seconds of training"}
            plots.panels(
                path.parent / f"{kind}-{score}.png",
                [
                    plots.Panel(
                        label.get(basis, basis),
                        "mean squared error" if error else f"accuracy, {score}, %",
                        curves[basis],
                        log_x=True,
                        log_y=error,
                    )
                    for basis in BASES
                ],
                title=f"{TITLES[kind]}; each point is a training of its own, annealed to its end; "
                f"mean and spread of {seeds(kind, size)} seeds",
            )


TITLES = {"sine": "Sine waves", "omniglot": "Omniglot 5-way 1-shot"}
