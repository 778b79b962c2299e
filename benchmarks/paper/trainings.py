"""The paper's results: trains at full length, evaluates, and records the figures.

    python -m benchmarks paper o15 --data DIR                             # stopped, it goes on
    python -m benchmarks paper o15 --data DIR --inner-opt-state carry     # as the released code
    python -m benchmarks paper o15-balanced-quarter --data DIR            # beyond the paper

Trainings are runs like any other, under `runs/paper/`. Their figures go to `results/paper/`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro
from jax.sharding import Mesh

from benchmarks import records
from reptile_jax.app import json_files, presets, processes, run_folder, runner, scores
from reptile_jax.app.config import FewShotConfig, SinusoidConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where."""

    name: Annotated[str, tyro.conf.Positional]  # of the training
    data: Path = Path("data/omniglot")  # folder of the two official zip files
    runs: Path = Path("runs/paper")  # folder of the trainings
    seed: int = 0  # of the training
    meta_steps: int | None = None  # fewer than the preset's; the name of the arm says so
    # Another than the preset's; the name of the arm says so.
    inner_opt_state: Literal["reset", "average", "carry"] | None = None
    balanced_eval: bool = False  # balanced mini-batches in evaluation as well
    eval_tasks: int = 10_000  # at the ways of the training; at other ways, as many query images
    devices: int | None = None  # that share the tasks; default: as `reptile-jax train`
    out: Path = records.RESULTS  # where results go


Training: TypeAlias = Callable[[Options, Mesh | None], None]


def few_shot(preset: str, rows: tuple[str, ...]) -> Training:
    """One training of a preset, evaluated as each of the paper's `rows` that it serves."""

    def run(options: Options, mesh: Mesh | None = None) -> None:
        config, name = asked_for(preset, options)
        folder = options.runs / f"{name}-seed{options.seed}"
        trained(config, folder, options.data, mesh)
        # A row of the paper: its own preset, whole, evaluated as in the paper.
        whole = preset == rows[0] and options.meta_steps is None and not options.balanced_eval
        rest = name.removeprefix(rows[0]) + ("-balanced-eval" if options.balanced_eval else "")
        for row in rows:
            own, changes = presets.PAPER[row], evaluation_of(row, config)
            if options.balanced_eval:
                if own.ways * own.shots == own.eval_batch:
                    continue  # every mini-batch is the support set
                changes |= balanced(own)
            result = scored(config, folder, options.data, changes, mesh)
            figures = {
                "row": row if whole else None,
                "preset": preset,
                **_figures(result, folder),
            }
            file = "rows" if whole else "beyond"
            publish(options, file, f"{row}{rest}-seed{options.seed}", result["config"], figures)

    return run


def asked_for(preset: str, options: Options) -> tuple[FewShotConfig, str]:
    """The training that the options make of a preset, and its name."""
    config, name = presets.ALL[preset], preset
    config = dataclasses.replace(config, seed=options.seed, eval_tasks=options.eval_tasks)
    if options.inner_opt_state not in (None, config.inner_opt_state):
        config = dataclasses.replace(config, inner_opt_state=options.inner_opt_state)
        name = f"{name}-{options.inner_opt_state}"
    if options.meta_steps is not None:
        config = dataclasses.replace(config, meta_steps=options.meta_steps)
        name = f"{name}-{options.meta_steps}-steps"
    return config, name


def evaluation_of(row: str, config: FewShotConfig) -> dict[str, Any]:
    """What evaluation by a row of the paper changes in the configuration of a training."""
    own = presets.PAPER[row]
    changes: dict[str, Any] = {"shots": own.shots, "eval_batch": own.eval_batch}
    if own.ways != config.held_out_ways:
        changes["eval_ways"] = own.ways
    # As many query images as at the ways of the training's own evaluation.
    return {**changes, "eval_tasks": max(2, config.eval_tasks * config.held_out_ways // own.ways)}


def balanced(row: FewShotConfig) -> dict[str, Any]:
    """The changes for balanced mini-batches, with as many images as in a row's evaluation."""
    batch = max(row.eval_batch, row.ways)
    steps = row.eval_steps * row.eval_batch // batch
    return {"balanced_eval": True, "eval_batch": batch, "eval_steps": steps}


def trained(
    config: FewShotConfig | SinusoidConfig,
    folder: Path,
    data: Path | None = None,
    mesh: Mesh | None = None,
) -> None:
    """Trains, or goes on with a training that was stopped; a finished one stays as it is."""
    if not (folder / "config.json").exists():
        runner.train(config, data, folder, mesh=mesh)
    elif (found := run_folder.load_config(folder)) != config:
        raise ValueError(f"{folder} is another training: {found}.")
    elif not (folder / "results.json").exists():
        runner.resume(folder, data, mesh=mesh)


def scored(
    config: FewShotConfig,
    folder: Path,
    data: Path,
    changes: dict[str, Any],
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The result of an evaluation with these changes; evaluates if there is none yet."""
    wanted = dataclasses.replace(config, **changes)

    def find() -> dict[str, Any] | None:
        paths = [*folder.glob("results*.json"), *folder.glob("evaluation*.json")]
        found = (json.loads(path.read_text()) for path in paths)
        # A result may lack fields that are younger than it: they have their defaults.
        asked = lambda result: FewShotConfig(**result["config"]) == wanted
        return next((result for result in found if asked(result)), None)

    if (result := find()) is None:
        runner.evaluate(folder, data, mesh=mesh, **changes)
        result = find()
    if result is None or result["meta steps"] != config.meta_steps:
        raise ValueError(f"{folder} has no evaluation of its end with {changes}.")
    return result


def _figures(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is published of a few-shot training and one evaluation of it."""
    return {
        "accuracy": result["scores"][scores.OURS],
        "tasks": result["tasks"],
        "meta steps": result["meta steps"],
        "training seconds": training_seconds(folder),
        "evaluation seconds": result["evaluation seconds"],
        "learning curve": learning_curve(folder),
    }


def training_seconds(folder: Path) -> float:
    """Seconds of training, over all the pieces that it was done in."""
    lines = (folder / "times.jsonl").read_text().splitlines()
    pieces = {row["from"]: row["seconds"] for row in map(json.loads, lines)}
    return round(sum(pieces.values()), 1)


def learning_curve(folder: Path, points: int = 200) -> dict[str, list[float | None]]:
    """The training losses, thinned to means over equal stretches; None where all are missing."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stretches = np.array_split(np.arange(len(rows)), min(points, len(rows)))

    def mean(name: str, part: np.ndarray) -> float | None:
        losses = [loss for i in part if (loss := rows[i][name]) is not None]
        return float(f"{np.mean(losses):.4g}") if losses else None

    curve = {name: [mean(name, s) for s in stretches] for name in ("first_loss", "last_loss")}
    return {"meta steps": [rows[part[-1]]["step"] for part in stretches], **curve}


def sinusoids(options: Options, mesh: Mesh | None = None, *, seeds: int = 10) -> None:
    """The sine waves over ten seeds, by batched Reptile and in the authors' serial setting."""
    settings = {"batched": SinusoidConfig(), "serial": presets.SINUSOID_SERIAL}
    for setting, start in settings.items():
        if options.meta_steps is not None:
            start = dataclasses.replace(start, meta_steps=options.meta_steps)
        found = []
        for seed in range(seeds):
            folder = options.runs / f"sinusoid-{setting}-seed{seed}"
            trained(dataclasses.replace(start, seed=seed), folder, mesh=mesh)
            found.append(json.loads((folder / "results.json").read_text()))
        errors = {
            name: {
                "by seed": [result["scores"][name]["error"]["mean"] for result in found],
                "inner steps": curve["error"]["inner steps"],
            }
            for name, curve in found[0]["scores"].items()
        }
        figures = {
            "mean squared error": errors,
            "tasks of each seed": start.eval_tasks,
            "seconds of each seed": [result["seconds"] for result in found],
        }
        publish(options, "sinusoid", setting, dataclasses.asdict(start), figures)


def mini_imagenet_made(options: Options, mesh: Mesh | None = None) -> None:
    """The mini-ImageNet rows' whole path at full image size, on made pictures."""
    from benchmarks.paper import made_pictures

    config = made_pictures.config(options.meta_steps or 300)
    folder = options.runs / f"m15-made-{config.meta_steps}-steps"
    with made_pictures.mini_imagenet() as data:
        trained(config, folder, data, mesh)
    result = json.loads((folder / "results.json").read_text())
    figures = {**_figures(result, folder), "peak MiB": made_pictures.peak_mib()}
    figures["seconds of a meta step"] = figures["training seconds"] / config.meta_steps
    publish(options, "m15_made", "m15-made", result["config"], figures)


TITLES = {
    "rows": "The paper's rows",
    "beyond": "Beyond the paper",
    "sinusoid": "Sine waves over ten seeds",
    "m15_made": "The mini-ImageNet row's whole path, on made pictures",
}


def publish(
    options: Options, file: str, arm: str, settings: dict[str, Any], figures: dict[str, Any]
) -> None:
    """Adds an arm to a record; what is published already stays as it is."""
    path = options.out / "paper" / f"{file}.json"
    there = records.stored(path, arm, settings)
    if there is not None and there["data"] == json_files.plain(figures):
        return
    command = records.command_of(sys.argv[1:])
    content = {"arm": arm, "command": command, "settings": settings}
    content |= {"machine": records.machine(), "data": figures}
    records.add_arm(path, {"title": TITLES[file], "command": command}, content)


def _rows_from(preset: str) -> tuple[str, ...]:
    """All of Omniglot's rows, its own first: its classifier takes any number of ways."""
    own = preset.partition("-")[0]
    return (own, *(row for row in ("o15", "o55", "o120", "o520") if row != own))


TRAININGS: dict[str, Training] = {
    "o15": few_shot("o15", ("o15", "o55")),
    "o120": few_shot("o120", ("o120", "o520")),
    **{preset: few_shot(preset, _rows_from(preset)) for preset in presets.BEYOND},
    "sinusoid": sinusoids,
    "m15-made": mini_imagenet_made,
}


def main(argv: Sequence[str]) -> int:
    """Runs the training that is named."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks paper")
    # A carried inner state needs one device.
    share = options.inner_opt_state != "carry"
    sharing = processes.Sharing(devices=options.devices)
    with processes.joined(sharing, None, share=share) as (mesh, _):
        TRAININGS[options.name](options, mesh)
    return 0
