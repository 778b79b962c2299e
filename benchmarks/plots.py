"""Figures of results, one function for each result that has one: `(content, path of the PNG)`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import ScalarFormatter

from benchmarks.measure import paired_ratio


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
    # FOMAML's lines lie on Reptile's.
    styles = {"Reptile": "o-", "FOMAML": "x--", "MAML": "s-"}
    for name, style in styles.items():
        cells = [measured[name] for measured in content["data"].values()]
        curves = ([c["median"] for c in cells], [c["temporary_bytes"] / 2**20 for c in cells])
        for panel, values in zip(panels, curves, strict=True):
            panel.plot(steps, values, style, markersize=5, linewidth=1.4, label=name)
    for panel, label in zip(panels, ("ms", "temporary MiB"), strict=True):
        panel.set(xlabel="inner steps", ylabel=label, xscale="log", yscale="log")
        panel.set_xticks(steps, steps)
        panel.yaxis.set_major_formatter(ScalarFormatter())
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
        column("seconds"), column("accuracy"), column("interval"), linewidth=1.4, elinewidth=0.6
    )
    panel.set(xlabel="seconds of training", ylabel="held-out accuracy, %")
    _finish(figure, [panel], path, legend=False)


def convolutions_by_tasks(content: dict[str, Any], path: Path) -> None:
    """The speed of the first layer's formulations against the tasks, a panel for each precision."""
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


# By the name of the result.
FIGURES = {
    "meta_batches": meta_batches,
    "memory": memory,
    "peers": peers,
    "time_to_accuracy_o15": time_to_accuracy,
    "gpu_throughput": meta_batches,
    "gpu_convolutions": convolutions_by_tasks,
}
