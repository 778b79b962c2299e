"""Pictures of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def adaptation(
    path: Path,
    grid: np.ndarray,
    waves: Sequence[np.ndarray],
    given: Sequence[tuple[np.ndarray, np.ndarray]],
    predictions: Mapping[str, Sequence[Mapping[int, np.ndarray]]],
) -> None:
    """Draws held-out waves, the points given, and predictions after some numbers of steps.

    Args:
      path: of the PNG to write.
      grid: `[points]` inputs.
      waves: for each task the true outputs `[points]`.
      given: for each task the inputs and outputs `[shots]` it is adapted with.
      predictions: by initialisation, for each task, by inner steps taken, outputs `[points]`.
    """
    figure, axes = plt.subplots(
        len(waves),
        len(predictions),
        figsize=(4.2 * len(predictions), 2.9 * len(waves)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, (name, tasks) in enumerate(predictions.items()):
        axes[0, column].set_title(name)
        axes[-1, column].set_xlabel("x")
        for row, by_steps in enumerate(tasks):
            panel = axes[row, column]
            panel.plot(grid, waves[row], color="black", linewidth=2.5, alpha=0.3, label="wave")
            colors = plt.get_cmap("viridis_r")(np.linspace(0.15, 0.95, len(by_steps)))
            for color, (steps, outputs) in zip(colors, by_steps.items(), strict=True):
                label = "1 step" if steps == 1 else f"{steps} steps"
                panel.plot(grid, outputs, color=color, linewidth=1.4, label=label)
            panel.plot(*given[row], "o", color="tab:red", markersize=4.5, label="given")
            # An initialisation that diverges is not to flatten the others' row.
            reach = 1.6 * np.abs(waves[row]).max()
            panel.set_ylim(-reach, reach)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def learning_curve(
    path: Path, title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Draws named curves over meta steps: by name, steps `[rows]` and values `[rows]`."""
    figure, panel = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, (steps, values) in curves.items():
        panel.plot(steps, values, label=name, linewidth=1.2)
    panel.set(title=title.replace("$", r"\$"), xlabel="meta steps", ylabel="inner loss")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
