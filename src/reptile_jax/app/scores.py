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
    main = experiment.main_score
    best = evaluations[OURS]
    terminal.say(f"the score: {show(best.mean[main][-1], best.ci95[main][-1])}, {main}")


def _few(steps: np.ndarray) -> list[int]:
    """The points of a curve in a table: all, or of many those at powers of two and the last."""
    if len(steps) <= 8:
        return list(range(len(steps)))
    powers = [2**exponent for exponent in range((len(steps) - 1).bit_length())]
    return sorted({0, *(power for power in powers if power < len(steps)), len(steps) - 1})
