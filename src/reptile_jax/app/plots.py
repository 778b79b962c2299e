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


def solutions(
    path: Path,
    horizon: float,
    names: Sequence[str],
    exact: np.ndarray,
    found: Mapping[str, np.ndarray],
    steps: int,
) -> None:
    """Draws exact solutions u(x, t) beside networks' after some inner steps, and both at the end.

    Args:
      path: of the PNG to write.
      horizon: the last t; x goes from -1 to 1.
      names: of the tasks.
      exact: `[tasks, times, points]`.
      found: the same by initialisation.
      steps: inner steps that the networks have taken.
    """
    maps = {"exact": exact, **found}
    figure, axes = plt.subplots(
        len(names),
        len(maps) + 1,
        figsize=(2.6 * (len(maps) + 1), 2.1 * len(names) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    x = np.linspace(-1, 1, exact.shape[-1])
    for row, name in enumerate(names):
        top = np.abs(exact[row]).max()
        axes[row, 0].set_ylabel(f"{name}\nt")
        for panel, (label, u) in zip(axes[row], maps.items(), strict=False):
            if row == 0:
                panel.set_title(label if label == "exact" else f"{label}, {steps} steps")
            panel.imshow(
                u[row],
                origin="lower",
                extent=(-1, 1, 0, horizon),
                aspect="auto",
                cmap="RdBu_r",
                vmin=-top,
                vmax=top,
                interpolation="bilinear",
            )
        profile = axes[row, -1]
        if row == 0:
            profile.set_title(f"u at t = {horizon:g}")
        profile.plot(x, exact[row, -1], color="black", linewidth=3, alpha=0.3, label="exact")
        for label, u in found.items():
            profile.plot(x, u[row, -1], linewidth=1.3, label=label)
        profile.set_ylim(-1.3 * top, 1.3 * top)
        profile.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("x")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    _save(figure, path)


def reconstructions(
    path: Path, truth: np.ndarray, names: Sequence[str], found: Mapping[str, np.ndarray]
) -> None:
    """Draws an image beside what was made of few views of it, with the PSNR of each.

    Args:
      path: of the PNG to write.
      truth: `[size, size]` in [0, 1].
      names: of the rows.
      found: by initialisation `[rows, size, size]`.
    """
    columns = len(found) + 1
    figure, axes = plt.subplots(
        len(names),
        columns,
        figsize=(1.5 * columns, 1.65 * len(names) + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name)
        panels = {"truth": truth, **{label: images[row] for label, images in found.items()}}
        for panel, (label, image) in zip(axes[row], panels.items(), strict=True):
            panel.imshow(image, origin="lower", cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[], title=label if row == 0 else "")
            if label != "truth":
                error = max(float(np.mean((image - truth) ** 2)), 1e-10)
                panel.set_xlabel(f"{-10 * np.log10(error):.1f} dB", fontsize="small")
    _save(figure, path)


def before_and_after(path: Path, measure: str, ends: Mapping[str, np.ndarray]) -> None:
    """Draws every task's score before and after adapting, sorted by the first, and the means.

    Args:
      path: of the PNG to write.
      measure: what the scores are.
      ends: by initialisation, `[tasks, 2]`.
    """
    figure, axes = plt.subplots(
        1,
        len(ends),
        figsize=(3.6 * len(ends) + 0.6, 3.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, (name, scores) in zip(axes[0], ends.items(), strict=True):
        before, after = scores[np.argsort(scores[:, 0], kind="stable")].T
        place = np.arange(len(scores))
        panel.vlines(place, before, after, color="black", alpha=0.15, linewidth=1)
        for values, color, label in (
            (before, "tab:gray", "before adapting"),
            (after, "tab:green", "after adapting"),
        ):
            panel.plot(place, values, "o", color=color, markersize=3, label=label)
            panel.axhline(values.mean(), color=color, linewidth=1, linestyle="--")
        panel.set(title=name, xlabel="tasks, sorted", xticks=[])
        panel.grid(alpha=0.3, axis="y")
    axes[0, 0].set_ylabel(measure)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
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
