"""Pictures of runs."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reptile_jax.app.json_files import write_whole

_COLUMNS = 10  # classes in a sheet of episodes


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
    columns = len(labels) if len(predictions) > 1 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    _save(figure, path)


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
    _save(figure, path)


def scores(path: Path, measure: str, curves: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Draws scores over inner steps, with their 95% intervals.

    Args:
      path: of the PNG to write.
      measure: what the scores are; an accuracy is in per cent.
      curves: by initialisation and score, "inner steps", "mean" and "ci95", each `[points]`.
    """
    figure, panel = plt.subplots(figsize=(6.4, 4), layout="constrained")
    scale = 100 if measure == "accuracy" else 1
    for label, by_score in curves.items():
        for score, curve in by_score.items():
            names = [label] * (len(curves) > 1) + [score] * (len(by_score) > 1)
            mean, half = (scale * np.array(curve[name], np.float64) for name in ("mean", "ci95"))
            (line,) = panel.plot(
                curve["inner steps"],
                mean,
                marker="o",
                markersize=3,
                label=", ".join(names) or score,
            )
            panel.fill_between(
                curve["inner steps"], mean - half, mean + half, alpha=0.25, color=line.get_color()
            )
    panel.set(xlabel="inner steps", ylabel=measure + (", %" if scale == 100 else ""))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    _save(figure, path)


def episodes(
    path: Path,
    steps: np.ndarray,
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    probabilities: np.ndarray,
) -> None:
    """Draws a sheet of episodes: an example of each class, a query, and what becomes of it.

    Below a query is the probability of its class over the inner steps, in green where the most
    probable class is the right one in the end. Of many classes it shows the first.

    Args:
      path: of the PNG to write.
      steps: `[points]`, inner steps taken.
      images: "support" and "query", `[tasks, images, height, width, channels]` from 0 to 1.
      labels: of both, `[tasks, images]`.
      probabilities: `[tasks, points, queries, ways]`.
    """
    tasks, columns = len(probabilities), min(_COLUMNS, probabilities.shape[-1])
    figure, axes = plt.subplots(
        3 * tasks, columns, figsize=(1.25 * columns + 0.9, 3.6 * tasks), squeeze=False,
        height_ratios=[1, 1, 0.75] * tasks, layout="constrained",
    )  # fmt: skip
    for task in range(tasks):
        for label in range(columns):
            support, query, panel = axes[3 * task : 3 * task + 3, label]
            index = int(np.flatnonzero(labels["query"][task] == label)[0])
            of_class = np.flatnonzero(labels["support"][task] == label)
            _picture(support, images["support"][task, of_class[0]], _name(label))
            _picture(query, images["query"][task, index], "")
            _course(panel, steps, probabilities[task, :, index], label)
        for row, name in enumerate(("support", "query", "probability")):
            axes[3 * task + row, 0].set_ylabel(name, fontsize=9)
    _save(figure, path)


def _name(label: int) -> str:
    return chr(ord("A") + label) if label < 26 else str(label + 1)


def _picture(panel: Axes, image: np.ndarray, title: str) -> None:
    is_grey = image.shape[-1] == 1
    panel.imshow(image[..., 0] if is_grey else image, cmap="gray", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[])
    panel.set_title(title, fontsize=10)


def _course(panel: Axes, steps: np.ndarray, probabilities: np.ndarray, label: int) -> None:
    """The probability of the right class over the inner steps; at the end, the answer."""
    answer = int(probabilities[-1].argmax())
    color = "tab:green" if answer == label else "tab:red"
    panel.plot(steps, probabilities[:, label], color=color, marker="o", markersize=2.5)
    panel.set(ylim=(-0.05, 1.05), yticks=[0, 1], xticks=[int(steps[0]), int(steps[-1])])
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.3)
    shown = f"{_name(answer)}, {100 * probabilities[-1, answer]:.0f}%"
    panel.set_title(shown, fontsize=9, color=color, pad=2)


def _save(figure: Figure, path: Path) -> None:
    """Writes a picture whole or not at all, and names it where it cannot be written."""
    png = io.BytesIO()
    figure.savefig(png, dpi=110)
    plt.close(figure)
    write_whole(path, png.getvalue())
