"""Pictures of experiments: curves with their spread over seeds, and heat maps."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import ticker

from reptile_jax.plots import plt

_MARKERS = "osD^vP*X<>"


class Panel(NamedTuple):
    """Named curves: by name, x `[points]` and values `[seeds, points]`."""

    xlabel: str
    ylabel: str
    curves: Mapping[str, tuple[Sequence[float], np.ndarray]]
    log_x: bool = False
    log_y: bool = False


def panels(path: Path, drawn: Sequence[Panel], *, title: str) -> None:
    """Draws each curve's mean over seeds, and a band of one standard deviation about it.

    A name has the same colour and marker in all panels, and one legend serves them.
    """
    figure, axes = plt.subplots(
        1,
        len(drawn),
        figsize=(max(8.5, 4.4 * len(drawn) + 0.6), 4.4),
        squeeze=False,
        layout="constrained",
    )
    names = list(dict.fromkeys(name for panel in drawn for name in panel.curves))
    colors = plt.get_cmap("tab10").colors
    handles = {}
    for axis, panel in zip(axes[0], drawn, strict=True):
        for name, (x, values) in panel.curves.items():
            index = names.index(name)
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
            style = {"color": colors[index % 10], "marker": _MARKERS[index % 10]}
            (handles[name],) = axis.plot(x, mean, **style, markersize=4, linewidth=1.3)
            axis.fill_between(
                x, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0
            )
        axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.log_x:
            axis.set_xscale("log")
            _plain_ticks(axis.xaxis, {value for x, _ in panel.curves.values() for value in x})
        if panel.log_y:
            axis.set_yscale("log")
            _plain_ticks(axis.yaxis)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(2 + len(drawn), len(handles)),
        frameon=False,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _plain_ticks(axis: Any, values: Collection[float] = ()) -> None:
    """Figures rather than powers on a logarithmic axis: at the values, if they are few."""
    if 0 < len(values) <= 5:
        axis.set_major_locator(ticker.FixedLocator(sorted(values)))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:.6g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def heat_maps(
    path: Path,
    maps: Mapping[str, np.ndarray],
    rows: Mapping[str, Sequence[float]],
    columns: Sequence[float],
    *,
    title: str,
    limit: float,
    share: Mapping[str, np.ndarray] | None = None,
    label: str = "median error, logarithmic",
) -> None:
    """Draws one map per name: by outer rate (rows, by name) and inner rate (columns).

    Args:
      maps: by name, values `[outer, inner]`; dark is good, and all from `limit` on is palest.
      share: by name, the share `[outer, inner]` of runs that diverged; written where not zero.
      label: what the colours show.
    """
    low = max(min(float(np.nanmin(values)) for values in maps.values()), 1e-4 * limit)
    figure, axes = plt.subplots(
        1, len(maps), figsize=(3.9 * len(maps) + 0.8, 4.1), squeeze=False, layout="constrained"
    )
    for axis, (name, values) in zip(axes[0], maps.items(), strict=True):
        shown = np.where(np.isfinite(values), np.clip(values, low, limit), limit)
        image = axis.imshow(
            np.log10(shown), cmap="viridis", vmin=np.log10(low), vmax=np.log10(limit), aspect="auto"
        )
        shares = np.zeros_like(values) if share is None else share[name]
        for (row, column), diverged in np.ndenumerate(shares):
            if diverged > 0:
                pale = np.log(shown[row, column] / low) > 0.6 * np.log(limit / low)
                axis.text(
                    column,
                    row,
                    f"{100 * diverged:.0f}",
                    ha="center",
                    va="center",
                    size=8,
                    color="black" if pale else "white",
                )
        axis.set_xticks(range(len(columns)), [f"{rate:g}" for rate in columns], rotation=60)
        axis.set_yticks(range(len(rows[name])), [f"{rate:g}" for rate in rows[name]])
        axis.set(title=name, xlabel="inner rate", ylabel="outer rate")
    bar = figure.colorbar(image, ax=axes[0], label=label)
    ticks = np.linspace(np.log10(low), np.log10(limit), 5)
    bar.set_ticks(ticks, labels=[f"{10**tick:.2g}" for tick in ticks])
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)
    plt.close(figure)
