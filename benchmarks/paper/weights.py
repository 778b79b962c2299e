"""Writes the weights that the package brings along, from the trainings and their figures alone.

Each is a `.safetensors` with the parameters and the inner optimiser's state, and a `.json`, its
card: the configuration, the data and the published figures of the training.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import records
from reptile_jax.app import json_files, models
from reptile_jax.app.scores import OURS
from reptile_jax.deploy import catalogue, tensors

TRAININGS = Path(__file__).parent.parent / "trainings"
OMNIGLOT = (
    "Omniglot (Lake, Salakhutdinov & Tenenbaum 2015; MIT licence): 1,200 characters in four "
    "rotations to train on, 423 others held out. Images of 28 x 28, dark ink on white."
)
SINES = "Sine waves of random amplitude (0.1 to 5) and phase, for x from -5 to 5."


class Source(NamedTuple):
    """Where a pretrained model is from."""

    training: str  # its folder
    summary: str
    data: str
    record: str  # the JSON of its figures, in results/paper
    arms: tuple[str, ...]


SOURCES: dict[str, Source] = {
    "omniglot-5way": Source(
        "o15-balanced-quarter",
        "For a few classes, with a linear classifier at zero. Takes any number.",
        OMNIGLOT,
        "beyond",
        (
            "o15-balanced-quarter-seed0",
            "o55-balanced-quarter-seed0",
            "o55-balanced-quarter-balanced-eval-seed0",
            "o120-balanced-quarter-seed0",
            "o120-balanced-quarter-balanced-eval-seed0",
        ),
    ),
    "omniglot-20way": Source(
        "o120-prototypes",
        "The most accurate at 20 classes: its classifier starts at class means. Takes any number.",
        OMNIGLOT,
        "beyond",
        ("o120-prototypes-seed0",),
    ),
    "omniglot-paper": Source(
        "o15-carry",
        "The paper's recipe, for up to 5 classes; the inner state is carried, as in its code.",
        OMNIGLOT,
        "rows",
        ("o15-carry-seed0", "o55-carry-seed0"),
    ),
    "sine-waves": Source(
        "sinusoid",
        "Sine waves through ten points, as in section 4 of the paper.",
        SINES,
        "sinusoid_run",
        ("sinusoid",),
    ),
}


def made(name: str) -> tuple[bytes, dict[str, Any]]:
    """The weights and the card of a pretrained model."""
    source = SOURCES[name]
    model = models.adaptable(TRAININGS / source.training)
    content = tensors.saved({"params": model.params, "inner_opt_state": model.inner_opt_state})
    arms = records.newest(records.RESULTS / "paper" / f"{source.record}.json")
    card = {
        "name": name,
        "summary": source.summary,
        "data": source.data,
        "training": source.training,
        "meta steps": model.card["meta steps"],
        "figures": [_figures(arms[arm]) for arm in source.arms],
        "figures from": f"benchmarks/results/paper/{source.record}.json",
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(content).hexdigest(),
        "config": model.card["config"],
    }
    return content, json_files.plain(card)


def _figures(arm: Mapping[str, Any]) -> dict[str, Any]:
    """One evaluation: what it was of, and the scores after its last inner step, with intervals."""
    data, settings = arm["data"], arm["settings"] or {}
    curves = data.get("accuracy") or data["scores"][OURS]
    setting = "10 points given"
    if "ways" in settings:
        ways = settings.get("eval_ways") or settings["ways"]
        balanced = ", balanced mini-batches" if settings.get("balanced_eval") else ""
        setting = f"{ways}-way {settings['shots']}-shot{balanced}"
    scores = {
        score: {"mean": curve["mean"][-1], "ci95": curve["ci95"][-1]}
        for score, curve in curves.items()
    }
    (steps,) = {curve["inner steps"][-1] for curve in curves.values()}
    return {
        "arm": arm["arm"],
        "setting": setting,
        "inner steps": steps,
        "tasks": data["tasks"],
        "scores": scores,
    }


def main(argv: Sequence[str]) -> int:
    """Writes the weights and cards of all pretrained models."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks weights", description=__doc__)
    parser.add_argument("--out", type=Path, default=catalogue.WEIGHTS, help="where they go")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        content, card = made(name)
        (args.out / f"{name}.safetensors").write_bytes(content)
        json_files.write_json(args.out / f"{name}.json", card)
        print(args.out / name, len(content), flush=True)
    return 0
