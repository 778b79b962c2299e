"""Statements about Reptile and MAML, each judged by a stated criterion from what was measured."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks import records, timing
from benchmarks.comparison import outcomes, stability
from benchmarks.comparison.contest import Size

YES, NO, OPEN = "yes", "no", "no difference seen"


class Finding(NamedTuple):
    """A claim on one problem, by one score, at one number of inner steps."""

    where: str
    figures: str
    answer: str  # YES, NO or OPEN


class Claim(NamedTuple):
    """A statement, and its findings."""

    statement: str
    criterion: str
    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        """Without measurements there is none."""
        answers = [finding.answer for finding in self.findings]
        if not answers:
            return "not measured yet"
        if all(answer == YES for answer in answers):
            return "holds"
        if YES in answers:
            return "depends on"
        return "does not hold" if NO in answers else "does not hold: no difference seen"


_INTERVAL = "the mean difference over seeds is above its 95% interval (Student's t)"
_FEW = 5  # with fewer seeds, spreads are not compared


def all_claims(memory: Path, path: Path, size: Size) -> list[Claim]:
    """Every claim, from the records alone.

    Args:
      memory: the record of the benchmark of that name.
      path: the record of `reptile_vs_maml`.
    """
    found = records.read(memory).get("data")
    return [
        Claim(
            "A meta step of MAML takes longer than one of Reptile",
            "the median time is more than 1.1 times Reptile's",
            [*_time_by_steps(found), *_time_in_contest(path, size)],
        ),
        Claim(
            "Reptile's and FOMAML's memory hardly grows with the number of inner steps",
            "temporary memory at the most inner steps is less than twice that at the fewest",
            [_flat(found, name) for name in ("Reptile", "FOMAML") if found],
        ),
        Claim(
            "MAML's memory grows in proportion to the number of inner steps",
            "a straight line fits with R² above 0.99, and its end is over five times its start",
            [_linear(found)] if found else [],
        ),
        *(
            Claim(
                f"Reptile does better than MAML after equal {basis}",
                _INTERVAL,
                _better(path, size, "Reptile", "MAML", basis),
            )
            for basis in outcomes.BASES
        ),
        Claim(
            "MAML does better than FOMAML after equal meta steps",
            _INTERVAL,
            _better(path, size, "MAML", "FOMAML", "meta steps"),
        ),
        Claim(
            "MAML does better than FOMAML after equal time",
            _INTERVAL,
            _better(path, size, "MAML", "FOMAML", "time"),
        ),
        Claim(
            "Reptile loses less than MAML where batch norm does not see the other queries",
            f"after equal meta steps, {_INTERVAL}",
            _transduction(path, size),
        ),
        Claim(
            "Reptile diverges at fewer rates than MAML",
            "on the grid, without the inner rates at which every method diverges, its share of "
            "runs that diverged is at least 5 points lower",
            _diverging(path, size),
        ),
        Claim(
            "Reptile does well at more rates than MAML",
            "on the same part of the grid, its share of cells with a median error within twice the "
            "best of all methods is at least 5 points higher",
            _robust(path, size),
        ),
        Claim(
            "Reptile varies less from seed to seed than MAML",
            "after equal meta steps the ratio of variances is below 1 by a two-sided F test at 5%; "
            f"fewer seeds than {_FEW} cannot tell",
            _spread(path, size),
        ),
    ]


def paired(difference: np.ndarray) -> tuple[float, float]:
    """The mean over seeds, and half the width of its 95% interval."""
    count = len(difference)
    half = scipy.stats.t.ppf(0.975, count - 1) * difference.std(ddof=1) / math.sqrt(count)
    return float(difference.mean()), float(half)


def _judge(where: str, difference: np.ndarray, unit: str, digits: int) -> Finding:
    """A finding that is YES where the difference is positive."""
    if not np.isfinite(difference).all():
        return Finding(where, "a run is not finite", OPEN)
    mean, half = paired(difference)
    answer = OPEN if abs(mean) <= half else YES if mean > 0 else NO
    return Finding(where, f"{mean:+.{digits}f} ± {half:.{digits}f}{unit}", answer)


def _longer(where: str, ratio: float) -> Finding:
    answer = YES if ratio > 1.1 else NO if ratio < 1 / 1.1 else OPEN
    return Finding(where, f"{ratio:.1f} times", answer)


def _time_by_steps(memory: dict[str, Any] | None) -> list[Finding]:
    return [
        _longer(
            f"one o15 task, {steps} inner step{'s' * (steps != '1')}",
            timing.paired_ratio(found["MAML"], found["Reptile"]),
        )
        for steps, found in (memory or {}).items()
    ]


def _time_in_contest(path: Path, size: Size) -> list[Finding]:
    times = {kind: outcomes.times(path, kind, size) for kind in outcomes.PROBLEMS}
    return [
        _longer(
            f"{outcomes.TITLES[kind]}, as trained here",
            timing.paired_ratio(ms["MAML"], ms["Reptile"]),
        )
        for kind, ms in times.items()
        if ms
    ]


def _bytes(memory: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([int(steps) for steps in memory])
    return steps, np.array([found[name]["temporary_bytes"] for found in memory.values()])


def _flat(memory: dict[str, Any], name: str) -> Finding:
    steps, size = _bytes(memory, name)
    figures = f"{size[-1] / size[0]:.1f} times from {steps[0]} to {steps[-1]} steps"
    return Finding(name, figures, YES if size[-1] < 2 * size[0] else NO)


def _linear(memory: dict[str, Any]) -> Finding:
    steps, size = _bytes(memory, "MAML")
    fit = np.corrcoef(steps, size)[0, 1] ** 2 if len(steps) > 2 else math.nan
    figures = f"{size[-1] / size[0]:.1f} times from {steps[0]} to {steps[-1]} steps, R² {fit:.4f}"
    return Finding("MAML", figures, YES if fit > 0.99 and size[-1] > 5 * size[0] else NO)


def _pairs(path: Path, size: Size, one: str, other: str, basis: str):
    """For each problem's budgets, and each score: the seeds' scores of both methods."""
    for kind in outcomes.PROBLEMS:
        times = outcomes.milliseconds(path, kind, size)
        found = outcomes.results(path, kind, size)
        cases = itertools.product(outcomes.SCORES[kind], outcomes.budgets(kind, size))
        for score, budget in cases if times else ():
            steps = [outcomes.equal_steps(times, name, basis, budget) for name in (one, other)]
            if all(n in found[name] for n, name in zip(steps, (one, other), strict=True)):
                values = [
                    found[name][n][score] for n, name in zip(steps, (one, other), strict=True)
                ]
                where = outcomes.TITLES[kind] + ("" if kind == "sine" else f", {score}")
                yield kind, where, steps, values


def _better(path: Path, size: Size, one: str, other: str, basis: str) -> list[Finding]:
    findings = []
    for kind, where, steps, (a, b) in _pairs(path, size, one, other, basis):
        gain = b - a if kind == "sine" else 100 * (a - b)
        unit, digits = (" in squared error", 4) if kind == "sine" else (" points", 1)
        at = f"{where} ({steps[0]:,} and {steps[1]:,} meta steps)"
        findings.append(_judge(at, gain, unit, digits))
    return findings


def _transduction(path: Path, size: Size) -> list[Finding]:
    lost: dict[int, np.ndarray] = {}  # by meta steps, what MAML loses beyond Reptile
    for kind, _, (steps, _), (reptile, maml) in _pairs(path, size, "Reptile", "MAML", "meta steps"):
        if kind == "omniglot":  # transductive comes first
            lost[steps] = lost[steps] - (maml - reptile) if steps in lost else maml - reptile
    return [
        _judge(f"{outcomes.TITLES['omniglot']} ({steps:,} meta steps)", 100 * more, " points", 1)
        for steps, more in lost.items()
    ]


def _compared(where: str, figures: str, points: float) -> list[Finding]:
    return [Finding(where, figures, YES if points >= 5 else NO if points <= -5 else OPEN)]


def _on_the_grid(path: Path, size: Size, share) -> list[Finding]:
    """YES where `share(of a method)`, in per cent, is the higher for Reptile."""
    found = stability.stored(path, size)
    if len(found) < len(stability.METHODS):
        return []
    stood = ~np.all([data["diverged"].all((0, 2)) for data in found.values()], axis=0)  # [inner]
    found = {
        name: {"error": data["error"][:, stood], "diverged": data["diverged"][:, stood]}
        for name, data in found.items()
    }
    of = {name: 100 * share(data, found) for name, data in found.items()}
    reptiles = ("Reptile", "Reptile, Adam outside")
    return list(
        itertools.chain.from_iterable(
            _compared(
                f"Sine waves, {name}",
                f"{abs(of[name]):.0f}% against {abs(of['MAML']):.0f}%",
                of[name] - of["MAML"],
            )
            for name in reptiles
        )
    )


def _diverging(path: Path, size: Size) -> list[Finding]:
    return _on_the_grid(path, size, lambda data, found: -data["diverged"].mean())


def _robust(path: Path, size: Size) -> list[Finding]:
    median = lambda data: np.median(np.nan_to_num(data["error"], nan=np.inf), axis=2)

    def share(data, found):
        best = min(median(other).min() for other in found.values())
        return (median(data) <= 2 * best).mean()

    return _on_the_grid(path, size, share)


def _spread(path: Path, size: Size) -> list[Finding]:
    findings = []
    for kind, where, (steps, _), (a, b) in _pairs(path, size, "Reptile", "MAML", "meta steps"):
        ratio = a.var(ddof=1) / b.var(ddof=1) if b.var() > 0 else math.nan
        high = scipy.stats.f.ppf(0.975, len(a) - 1, len(b) - 1)
        answer = YES if ratio < 1 / high else NO if ratio > high else OPEN
        scale = 1 if kind == "sine" else 100
        figures = f"{scale * a.std(ddof=1):.2g} against {scale * b.std(ddof=1):.2g}"
        if len(a) < _FEW:
            answer, figures = OPEN, f"{figures}, too few seeds"
        findings.append(Finding(f"{where} ({steps:,} meta steps)", figures, answer))
    return findings
