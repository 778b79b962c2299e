"""The parts of docs/results/paper.md and recipes.md, from the records of the paper's results."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import records, tables
from reptile_jax.app import plots, presets
from reptile_jax.app.config import FewShotConfig

Arms = Mapping[str, dict[str, Any]]  # by name

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
_POLICIES = ("reset", "average", "carry")


def parts(results: Path, page: Path) -> dict[str, str]:
    """Every table of trainings with its record."""
    folder = results / "paper"
    arms = lambda name: records.newest(folder / f"{name}.json")
    written = {
        "sinusoid": sinusoid_table(arms("sinusoid")),
        "rows": rows_table(arms("rows")),
        "beyond": beyond_table(arms("beyond")),
        "inner_opt_state": policies_table(arms("inner_opt_state")),
        "o15_tenth": scores_table(arms("o15_tenth")),
    }
    return {name: _part(text, folder / f"{name}.json", page) for name, text in written.items()}


def tried(results: Path, page: Path) -> dict[str, str]:
    """Every table of what was tried, with its record."""
    found = {}
    kinds = ("recipes_", "evaluations_", "lanes", "precision_")
    for path in sorted(
        path for kind in kinds for path in (results / "paper").glob(f"{kind}*.json")
    ):
        record = records.read(path)
        table = tables.markdown(record["columns"], record["rows"])
        found[path.stem] = f"{table}\n\n{tables.source(record, path, page)}"
    return found


def _part(table: str, path: Path, page: Path) -> str:
    record = records.read(path)
    if not record:
        return table
    return f"{table}\n\n`{record['command']}`, {tables.link(path.name, path, page)}."


def rows_table(arms: Arms) -> str:
    """The paper's rows: the paper, re-runs of its code, and ours by inner-state policy."""
    lines = []
    for row, policy in itertools.product(PUBLISHED, _POLICIES):
        asked = row.removesuffix("t"), policy
        seeds = {
            name: arm for name, arm in arms.items() if (arm["data"]["row"], _policy(arm)) == asked
        }
        if not seeds:
            continue
        published, mode = PUBLISHED[row], MODES["t" if row.endswith("t") else ""]
        scores = [100 * arm["data"]["accuracy"][mode]["mean"][-1] for arm in seeds.values()]
        low, high = min(RERUNS[row]), max(RERUNS[row])
        lines.append(
            [
                row if policy == presets.PAPER[asked[0]].inner_opt_state else f"{row}, {policy}",
                "{:.2f} ± {:.2f}".format(*published),
                f"{low:.2f} to {high:.2f}",
                ", ".join(_score(arm, mode) for arm in seeds.values()),
                _verdict(scores, low, high),
                ", ".join(seeds),
            ]
        )
    columns = ["row", "the paper", "re-runs of its code", "reptile_jax", "inside", "arms"]
    return tables.markdown(columns, lines, words=("inside", "arms"))


def beyond_table(arms: Arms) -> str:
    """Other presets, lengths and evaluations, under the paper's figures."""
    trainings: dict[tuple[str, int, int], dict[str, str]] = defaultdict(dict)
    for name, arm in arms.items():
        preset = presets.ALL.get(arm["data"].get("preset"))
        if preset is not None and arm["data"]["row"] is None:
            row, label = name.partition("-")[0], arm["data"]["preset"]
            if _policy(arm) != preset.inner_opt_state:
                label = f"{label}, {_policy(arm)}"
            if arm["settings"].get("balanced_eval"):
                label = f"{label}, evaluated balanced"
            trainings[label, arm["data"]["meta steps"], arm["settings"]["seed"]][row] = name
    if not trainings:
        return tables.markdown([], [])
    rows = [
        row for row in ("o15", "o55", "o120", "o520") if any(row in t for t in trainings.values())
    ]
    columns = [row + suffix for row in rows for suffix in MODES]
    length = (
        f"{presets.PAPER['o15'].meta_steps:,}; o120: {presets.PAPER['o120'].meta_steps:,} others"
    )
    of_paper = ["{:.2f} ± {:.2f}".format(*PUBLISHED[column]) for column in columns]
    lines = [["the paper", length, *of_paper, ""]]
    for (label, steps, seed), names in sorted(trainings.items()):
        cells = [
            _score(arms[names[row]], mode) if row in names else ""
            for row in rows
            for mode in MODES.values()
        ]
        lines.append([f"{label}, seed {seed}", f"{steps:,}", *cells, ", ".join(names.values())])
    return tables.markdown(["training", "meta steps", *columns, "arms"], lines, words=("arms",))


def _policy(arm: dict[str, Any]) -> str:
    return arm["settings"].get("inner_opt_state", FewShotConfig.inner_opt_state)


def _score(arm: dict[str, Any], mode: str) -> str:
    """The accuracy after all inner steps, in per cent, with its interval."""
    accuracy = arm["data"]["accuracy"][mode]
    return f"{100 * accuracy['mean'][-1]:.2f} ± {100 * accuracy['ci95'][-1]:.2f}"


def _verdict(scores: list[float], low: float, high: float) -> str:
    """Where the mean of our seeds is, against the band of the re-runs."""
    mean = sum(scores) / len(scores)
    if mean < low:
        return f"{low - mean:.2f} below"
    return f"{mean - high:.2f} above" if mean > high else "yes"


def sinusoid_table(arms: Arms) -> str:
    """Errors by inner steps: means over seeds with t-intervals."""
    lines, columns = [], []
    for setting in ("batched", "serial"):
        errors = arms[setting]["data"]["mean squared error"] if setting in arms else {}
        for name, error in errors.items():
            if name != "Reptile" and setting == "serial":
                continue
            values = np.array(error["by seed"])  # [seeds, points]
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1)
            half = half / math.sqrt(len(values))
            cells = [f"{m:.3f} ± {h:.3f}" for m, h in zip(values.mean(0), half, strict=True)]
            columns = ["after SGD steps", *map(str, error["inner steps"])]
            lines.append([f"{name}, {setting}" if name == "Reptile" else name, *cells])
    return tables.markdown(columns, lines)


def policies_table(arms: Arms) -> str:
    """Accuracy by where the inner optimiser starts."""
    lines = [[f'`"{name}"`', *_both(arm)] for name, arm in arms.items()]
    return tables.markdown(["inner_opt_state", "transductive", "non-transductive"], lines)


def scores_table(arms: Arms) -> str:
    """Accuracy in both ways after all inner steps."""
    lines = [_both(arm, " %") for arm in arms.values()]
    return tables.markdown(["transductive", "non-transductive"], lines)


def _both(arm: dict[str, Any], unit: str = "") -> list[str]:
    scores = arm["data"]["scores"]["Reptile"]
    last = lambda mode, of: 100 * scores[mode][of][-1]
    modes = ("transductive", "non-transductive")
    return [f"{last(mode, 'mean'):.2f} ± {last(mode, 'ci95'):.2f}{unit}" for mode in modes]


def draw(results: Path) -> None:
    """A picture for each training: the loss before its first and its last inner step."""
    folder = results / "paper"
    found = [records.newest(folder / f"{name}.json") for name in ("rows", "beyond", "m15_made")]
    names = sorted(itertools.chain.from_iterable(found))
    arms = {name: next(part[name] for part in found if name in part) for name in names}
    (folder / "learning_curves").mkdir(parents=True, exist_ok=True)
    for training, seeds in by_training(arms):
        curves = {}
        for seed, arm in seeds.items():
            curve = arm["data"]["learning curve"]
            steps, first, last = (
                np.array(curve[name], float) for name in ("meta steps", "first_loss", "last_loss")
            )
            curves[f"{seed}, before the first inner step"] = steps, first
            curves[f"{seed}, before the last"] = steps, last
        path = folder / "learning_curves" / f"{training}.png"
        plots.learning_curve(path, training, curves)


def by_training(arms: Arms) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of trainings, and their arms by seed; each training counts once, as its own row."""
    trainings: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, arm in arms.items():
        own = name.startswith(arm["data"].get("preset", "")) and "-balanced-eval" not in name
        if "learning curve" in arm["data"] and own:
            training, _, seed = name.partition("-seed")
            trainings[training][f"seed {seed}" if seed else training] = arm
    yield from trainings.items()
