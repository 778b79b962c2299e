"""Pictures of results: of tables, of curves with their spread over seeds, and heat maps."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from benchmarks.timing import paired_ratio

_MARKERS = "osD^vP*X<>"

# Pictures of the speed records: each function takes the record and the path of the PNG.


def meta_batches(content: dict[str, Any], path: Path) -> None:
    """Tasks per second, and the share of the bare products, against the meta-batch."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for cell, measured in content["data"].items():
        if "ours" not in measured:  # left out, or failed
            continue
        workload, number = cell.split()[0], int(cell.split()[-1].replace(",", ""))
        rate = 1e3 * number / measured["ours"]["median"]
        share = 100 / paired_ratio(measured["ours"], measured["bare"])
        lines.setdefault(workload, []).append((number, rate, share))
    figure, (speed, share) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for workload, points in lines.items():
        numbers, rates, shares = zip(*sorted(points), strict=True)
        speed.plot(numbers, rates, "o-", markersize=4, linewidth=1.4, label=workload)
        share.plot(numbers, shares, "o-", markersize=4, linewidth=1.4, label=workload)
    speed.set(xlabel="tasks in a meta step", ylabel="tasks/s", xscale="log", yscale="log")
    share.set(xlabel="tasks in a meta step", ylabel="% of bare products", xscale="log")
    share.set_ylim(0, None)
    _finish(figure, (speed, share), path)


def memory(content: dict[str, Any], path: Path) -> None:
    """Time and memory against the inner steps, for the three meta-gradients."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    steps = [int(number) for number in content["data"]]
    # The lines of FOMAML and Reptile coincide.
    styles = {"Reptile": "o-", "FOMAML": "x--", "MAML": "s-"}
    for name, style in styles.items():
        cells = [measured[name] for measured in content["data"].values()]
        curves = ([c["median"] for c in cells], [c["temporary_bytes"] / 2**20 for c in cells])
        for panel, values in zip(panels, curves, strict=True):
            panel.plot(steps, values, style, markersize=5, linewidth=1.4, label=name)
    for panel, label in zip(panels, ("ms", "temporary MiB"), strict=True):
        panel.set(xlabel="inner steps", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(steps, steps)
        panel.yaxis.set_major_formatter(ticker.ScalarFormatter())
        panel.minorticks_off()
    _finish(figure, panels, path)


def peers(content: dict[str, Any], path: Path) -> None:
    """Each arm's time for the same meta step, a panel for each workload."""
    figure, panels = plt.subplots(
        1, len(content["data"]), figsize=(8, 2.6), layout="constrained", squeeze=False
    )
    for panel, (workload, measured) in zip(panels[0], content["data"].items(), strict=True):
        names = list(measured)[::-1]
        medians = [measured[name]["median"] for name in names]
        colors = ["tab:blue" if name.startswith("reptile_jax") else "0.7" for name in names]
        bars = panel.barh(names, medians, color=colors)
        labels = [f"{median:.3g}" for median in medians]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.set(title=workload, xlabel="ms")
        panel.set_xlim(0, 1.15 * max(medians))
        panel.tick_params(axis="y", labelsize=8)
    _finish(figure, panels[0], path, legend=False)


def time_to_accuracy(content: dict[str, Any], path: Path) -> None:
    """Held-out accuracy against seconds of training."""
    curve = content["data"]["curve"]
    column = lambda name: [point[name] for point in curve]
    figure, panel = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    panel.errorbar(
        column("seconds"), column("accuracy"), column("ci95"), linewidth=1.4, elinewidth=0.6
    )
    panel.set(xlabel="seconds of training", ylabel="held-out accuracy, %")
    _finish(figure, [panel], path, legend=False)


def convolutions_by_tasks(content: dict[str, Any], path: Path) -> None:
    """The speed of the first layer's formulations by tasks, a panel for each precision."""
    layer = content["rows"][0][0]
    rows = [row for row in content["rows"] if row[0] == layer and _is_number(row[5])]
    precisions = list(dict.fromkeys(row[1] for row in rows))
    figure, panels = plt.subplots(
        1,
        max(1, len(precisions)),
        figsize=(8, 3.4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for panel, precision in zip(panels[0], precisions, strict=False):
        for way in dict.fromkeys(row[3] for row in rows):
            points = [(_number(r[2]), _number(r[5])) for r in rows if r[1:4:2] == [precision, way]]
            if points:
                panel.plot(*zip(*sorted(points), strict=True), "o-", markersize=4, label=way)
        panel.set(title=precision, xlabel="tasks", xscale="log", yscale="log")
    panels[0, 0].set_ylabel("GFLOP/s")
    _finish(figure, panels[0], path)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").isdigit()


def _finish(figure, panels: Iterable, path: Path, *, legend: bool = True) -> None:
    for index, panel in enumerate(panels):
        panel.grid(alpha=0.3, axis="both" if legend else "x")
        panel.set_axisbelow(True)
        if legend and not index:
            panel.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# By the name of the record.
FIGURES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "meta_batches": meta_batches,
    "memory": memory,
    "peers": peers,
    "time_to_accuracy_o15": time_to_accuracy,
    "gpu_throughput": meta_batches,
    "gpu_convolutions": convolutions_by_tasks,
}


# Pictures of experiments.


class Panel(NamedTuple):
    """Named curves: by name, x `[points]` and values `[seeds, points]`."""

    xlabel: str
    ylabel: str
    curves: Mapping[str, tuple[Sequence[float], np.ndarray]]
    log_x: bool = False
    log_y: bool = False


def panels(path: Path, drawn: Sequence[Panel], *, title: str) -> None:
    """Draws the mean of each curve over seeds, in a band of one standard deviation.

    A name has the same colour and marker in all panels, which share a legend.
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
    """Labels a logarithmic axis with plain numbers: at the values, if they are few."""
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
      maps: by name, values `[outer, inner]`; dark is good, and values from `limit` on are palest.
      share: by name, the share `[outer, inner]` of runs that diverged; zeros are not written.
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
