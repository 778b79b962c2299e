"""The scores of a run's evaluation, as its results and its table have them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import reptile_jax as rj
from reptile_jax.app import terminal
from reptile_jax.app.config import Config
from reptile_jax.app.experiment import Experiment

OURS = "Reptile"  # the run's own initialisation, among those it is compared with


def curves(result: rj.Evaluation) -> dict[str, Any]:
    """The curve of each score that is a number; what else there is, is for the picture."""
    return {
        score: {"inner steps": result.steps, "mean": mean, "ci95": result.ci95[score]}
        for score, mean in result.mean.items()
        if isinstance(mean, np.ndarray) and mean.ndim == 1  # [points]
    }


def spreads(
    experiment: Experiment, evaluations: Mapping[str, rj.Evaluation]
) -> dict[str, dict[str, Any]]:
    """How much held-out tasks differ before and after adapting, if the experiment reports that."""
    if not experiment.reports_spread:
        return {}
    worst = "lowest" if experiment.measure == "accuracy" else "highest"
    found = {}
    for label, result in evaluations.items():
        ends = result.scores[experiment.main_score][:, [0, -1]]
        found[label] = {"inner steps": result.steps[[0, -1]]}
        found[label] |= rj.spread(ends, worst=worst)._asdict()
    return {"spread": found}


def _tabulate_spreads(experiment: Experiment, evaluations: Mapping[str, rj.Evaluation]) -> None:
    scale, digits = (100, 1) if experiment.percent else (1, 3)
    show = lambda *values: [f"{scale * value:.{digits}f}" for value in values]
    rows = []
    for label, found in spreads(experiment, evaluations).get("spread", {}).items():
        for point, step in enumerate(found["inner steps"]):
            figures = [found[name][point] for name in ("mean", "worst_tenth", "std")]
            rows.append([label, str(step), *show(*figures, *found["quartiles"][:, point])])
    if rows:
        names = ["mean", "worst tenth", "deviation", "least", "quartile", "median", "quartile"]
        title = f"how much held-out tasks differ in {experiment.main_score}"
        terminal.table(title, ["", "inner steps", *names, "greatest"], rows)


def tabulate(
    config: Config, experiment: Experiment, evaluations: Mapping[str, rj.Evaluation], step: int
) -> None:
    """Shows the scores of all initialisations, by inner steps, and the run's own score."""
    scale, digits, unit = (100, 2, " %") if experiment.percent else (1, 3, "")
    show = lambda mean, half: f"{scale * mean:.{digits}f} ± {scale * half:.{digits}f}"
    rows = []
    for label, result in evaluations.items():
        for score, curve in curves(result).items():
            # What tells the rows apart: the initialisation, the score, or both.
            several = (len(evaluations) > 1, len(curves(result)) > 1)
            names = [name for name, is_told in zip((label, score), several, strict=True) if is_told]
            shown = _few(curve["inner steps"])
            figures = [show(curve["mean"][i], curve["ci95"][i]) for i in shown]
            rows.append([", ".join(names) or label, *figures])
    steps = evaluations[OURS].steps
    title = [
        f"{experiment.measure}{unit} ± 95% interval over {config.eval_tasks:,} held-out tasks",
        experiment.setting,
        f"after {step:,} meta steps",
    ]
    terminal.table(
        ", ".join(filter(None, title)),
        ["inner steps", *(str(steps[i]) for i in _few(steps))],
        rows,
    )
    _tabulate_spreads(experiment, evaluations)
    main = experiment.main_score
    best = evaluations[OURS]
    terminal.say(f"the score: {show(best.mean[main][-1], best.ci95[main][-1])}, {main}")


def _few(steps: np.ndarray) -> list[int]:
    """The points of a curve in a table: all if few; else those at powers of two or ten."""
    if len(steps) <= 8:
        return list(range(len(steps)))
    base = 2 if len(steps) <= 100 else 10
    powers = [base**exponent for exponent in range((len(steps) - 1).bit_length())]
    return sorted({0, *(power for power in powers if power < len(steps)), len(steps) - 1})
