"""The README's tables and pictures of the paper's results, from the JSON alone."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy import stats

from reptile_jax import plots, presets
from reptile_jax.reptile import InnerState

RESULTS = Path(__file__).parent / "results" / "paper"
README = Path(__file__).parent.parent / "README.md"

# Nichol et al. 2018, tables 1 and 2: per cent, by row; "t" is transductive.
PUBLISHED = {
    "o15": (95.39, 0.09),
    "o15t": (97.68, 0.04),
    "o55": (98.90, 0.10),
    "o55t": (99.48, 0.06),
    "o120": (88.14, 0.15),
    "o120t": (89.43, 0.14),
    "o520": (96.65, 0.33),
    "o520t": (97.12, 0.32),
}
# Four full re-runs of the released code, as glogowski-wojciech/progressive-reptile-experiments
# reports them (reproduce/README.md).
RERUNS = {
    "o15": (95.48, 95.56, 95.25, 95.20),
    "o15t": (97.74, 97.79, 97.61, 97.70),
    "o55": (98.90, 99.01, 99.15, 98.89),
    "o55t": (99.52, 99.53, 99.53, 99.49),
    "o120": (88.12, 87.93, 88.00, 88.09),
    "o120t": (89.30, 89.13, 89.13, 89.73),
    "o520": (96.56, 96.53, 96.56, 96.47),
    "o520t": (97.55, 97.05, 96.99, 97.39),
}
MODES = {"": "non-transductive", "t": "transductive"}


def write() -> None:
    """Rewrites each part of the README of which there are results, between its two markers."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    if any(result.get("row") for result in found.values()):
        replace("paper's rows", rows_table(found))
    if lines := beyond_table(found):
        replace("beyond the paper", lines)
    if lines := sinusoid_table(found):
        replace("sine waves over seeds", lines)
    draw_learning_curves(found)


def replace(part: str, lines: list[str]) -> None:
    """Puts lines between `<!-- part -->` and `<!-- end of part -->`."""
    start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    text = README.read_text()
    if start not in text or end not in text:
        raise ValueError(f"{README.name} has no {start} ... {end} to write between.")
    before, _, rest = text.partition(start)
    README.write_text(f"{before}{start}\n\n" + "\n".join(lines) + f"\n\n{end}{rest.split(end)[1]}")


def rows_table(found: dict[str, Any]) -> list[str]:
    """The paper's rows: the paper, re-runs of its code, and ours by inner-state policy."""
    lines = [
        "| row | the paper | re-runs of its code | reptile_jax | inside | JSON |",
        "|---|---:|---:|---:|---|---|",
    ]
    for row, policy in itertools.product(PUBLISHED, get_args(InnerState)):
        asked = row.removesuffix("t"), policy
        seeds = {name: r for name, r in found.items() if (r.get("row"), _policy(r)) == asked}
        if not seeds:
            continue
        published, mode = PUBLISHED[row], MODES["t" if row.endswith("t") else ""]
        scores = [100 * r["accuracy"][mode]["mean"][-1] for r in seeds.values()]
        ours = ", ".join(_score(result, mode) for result in seeds.values())
        low, high = min(RERUNS[row]), max(RERUNS[row])
        label = row if policy == presets.PAPER[asked[0]].inner_state else f"{row}, {policy}"
        lines.append(
            f"| {label} | {published[0]:.2f} ± {published[1]:.2f} | {low:.2f} to {high:.2f} "
            f"| {ours} | {_verdict(scores, low, high)} | {_links(seeds)} |"
        )
    return lines


def beyond_table(found: dict[str, Any]) -> list[str]:
    """What is no row of the paper, under its figures: other presets, lengths and evaluations."""
    trainings: dict[tuple[str, int, int], dict[str, str]] = defaultdict(dict)
    for name, result in found.items():
        preset = presets.ALL.get(result.get("preset"))
        if preset is not None and result["row"] is None:
            row = name.partition("-")[0]
            label = result["preset"]
            if _policy(result) != preset.inner_state:
                label = f"{label}, {_policy(result)}"
            if result["config"].get("balanced_eval"):
                label = f"{label}, evaluated balanced"
            trainings[label, result["meta steps"], result["config"]["seed"]][row] = name
    if not trainings:
        return []
    rows = [
        row for row in ("o15", "o55", "o120", "o520") if any(row in t for t in trainings.values())
    ]
    columns = [row + suffix for row in rows for suffix in MODES]
    of_paper = " | ".join("{:.2f} ± {:.2f}".format(*PUBLISHED[column]) for column in columns)
    length = (
        f"{presets.PAPER['o15'].meta_steps:,}; o120: {presets.PAPER['o120'].meta_steps:,} others"
    )
    lines = [
        f"| training | meta steps | {' | '.join(columns)} | JSON |",
        "|---" + "|---:" * (1 + len(columns)) + "|---|",
        f"| the paper | {length} | {of_paper} | |",
    ]
    for (label, steps, seed), names in sorted(trainings.items()):
        cells = [
            _score(found[names[row]], mode) if row in names else ""
            for row in rows
            for mode in MODES.values()
        ]
        links = _links(names.values())
        lines.append(f"| {label}, seed {seed} | {steps:,} | {' | '.join(cells)} | {links} |")
    return lines


def _policy(result: dict[str, Any]) -> str:
    return result.get("config", {}).get("inner_state", presets.FewShotImages.inner_state)


def _score(result: dict[str, Any], mode: str) -> str:
    """The accuracy after all inner steps, in per cent, with its interval."""
    accuracy = result["accuracy"][mode]
    return f"{100 * accuracy['mean'][-1]:.2f} ± {100 * accuracy['interval'][-1]:.2f}"


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](benchmarks/results/paper/{name}.json)" for name in names)


def _verdict(scores: list[float], low: float, high: float) -> str:
    """Where the mean of our seeds lies against the band of the re-runs."""
    mean = sum(scores) / len(scores)
    if mean < low:
        return f"{low - mean:.2f} below"
    return f"{mean - high:.2f} above" if mean > high else "yes"


def sinusoid_table(found: dict[str, Any]) -> list[str]:
    """Errors by inner steps: means over seeds with t-intervals."""
    lines = []
    for setting in ("batched", "serial"):
        result = found.get(f"sinusoid-{setting}")
        if result is None:
            continue
        for name, error in result["mean squared error"].items():
            if name != "Reptile" and setting == "serial":
                continue
            values = np.array(error["by seed"])  # [seeds, points]
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1)
            half = half / math.sqrt(len(values))
            cells = [f"{m:.3f} ± {h:.3f}" for m, h in zip(values.mean(0), half, strict=True)]
            if not lines:
                lines.append(f"| after SGD steps | {' | '.join(map(str, error['steps']))} |")
                lines.append("|---" + "|---:" * len(cells) + "|")
            label = f"{name}, {setting}" if name == "Reptile" else name
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def draw_learning_curves(found: dict[str, Any]) -> None:
    """One picture for each training: the loss before its first and its last inner step."""
    for training, results in _by_training(found):
        curves = {}
        for seed, result in results.items():
            curve = result["learning curve"]
            steps = np.array(curve["meta steps"])
            curves[f"{seed}, before the first inner step"] = steps, np.array(curve["first_loss"])
            curves[f"{seed}, before the last"] = steps, np.array(curve["last_loss"])
        plots.learning_curve(RESULTS / f"{training}.png", training, curves)


def _by_training(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of trainings, and their results by seed; a training counts as its own row alone."""
    trainings: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, result in found.items():
        own = name.startswith(result.get("preset", "")) and "-balanced-eval" not in name
        if "learning curve" in result and own:
            training, _, seed = name.partition("-seed")
            trainings[training][f"seed {seed}" if seed else training] = result
    yield from trainings.items()
