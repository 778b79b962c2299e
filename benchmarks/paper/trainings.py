"""The paper's results: trains at full length, evaluates, and writes the README's tables.

    python -m benchmarks.paper o15 --data DIR     # stopped, it goes on
    python -m benchmarks.paper o15 --data DIR --inner-state carried    # as the released code
    python -m benchmarks.paper o15-balanced-quarter --data DIR    # or o120, sinusoid, m15-made
    python -m benchmarks.paper report             # the README's tables and pictures, from the JSON

Trainings are runs like any other, under `runs/paper/`; what is published of them goes to
`results/paper/`, one JSON file each.
"""

import dataclasses
import json
import multiprocessing
import pickle
import re
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import tyro

from benchmarks import measure, paper_report
from benchmarks.paper_report import RESULTS
from reptile_jax import fewshot_run, presets, processes, runs, sinusoid_run
from reptile_jax.devices import Mesh
from reptile_jax.json_files import write_json
from reptile_jax.reptile import InnerState


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional]  # trainings; or report
    data: Path = Path("data/omniglot")  # folder of the two official zip files
    runs: Path = Path("runs/paper")  # folder of the trainings
    seed: int = 0  # of the training
    meta_steps: int | None = None  # fewer than the paper's; published under a name that says so
    inner_state: InnerState | None = None  # another than the preset's, likewise
    balanced_eval: bool = False  # balanced mini-batches in evaluation as well, likewise
    eval_tasks: int = 10_000  # of each row at the ways of the training; of others, as many queries
    devices: int | None = None  # that share the tasks; by default as `reptile-jax train` has it


Training: TypeAlias = Callable[[Options, Mesh | None], None]


def few_shot(preset: str, rows: tuple[str, ...]) -> Training:
    """One training of a preset, evaluated as each of the paper's `rows` that it serves."""

    def run(options: Options, mesh: Mesh | None = None) -> None:
        config, name = asked_for(preset, options)
        folder = options.runs / f"{name}-seed{options.seed}"
        trained(config, folder, options.data, mesh)
        # A row of the paper: its own preset, whole, evaluated as there.
        whole = preset == rows[0] and options.meta_steps is None and not options.balanced_eval
        rest = name.removeprefix(rows[0]) + ("-balanced-eval" if options.balanced_eval else "")
        for row in rows:
            changes = evaluation_of(row, config)
            if options.balanced_eval:
                if changes["ways"] * changes["shots"] == changes["eval_batch"]:
                    continue  # every mini-batch is the support set
                changes |= balanced(presets.PAPER[row])
            asked = dataclasses.replace(config, **changes)
            result = scored(asked, folder, options.data, changes, mesh)
            publish(
                f"{row}{rest}-seed{options.seed}",
                {
                    "row": row if whole else None,
                    "preset": preset,
                    "accuracy": result["accuracy"],
                    "tasks": result["tasks"],
                    "meta steps": result["meta steps"],
                    "training seconds": training_seconds(folder),
                    "evaluation seconds": result["evaluation seconds"],
                    "learning curve": learning_curve(folder),
                    "config": result["config"],
                },
            )

    return run


def asked_for(preset: str, options: Options) -> tuple[presets.FewShotImages, str]:
    """The training that the options make of a preset, and its name."""
    config, name = presets.ALL[preset], preset
    config = dataclasses.replace(config, seed=options.seed, eval_tasks=options.eval_tasks)
    if options.inner_state not in (None, config.inner_state):
        config = dataclasses.replace(config, inner_state=options.inner_state)
        name = f"{name}-{options.inner_state}"
    if options.meta_steps is not None:
        config = dataclasses.replace(config, meta_steps=options.meta_steps)
        name = f"{name}-{options.meta_steps}-steps"
    return config, name


def evaluation_of(row: str, config: presets.FewShotImages) -> dict[str, Any]:
    """What evaluation by a row of the paper changes in the configuration of a training."""
    changes = {
        field: getattr(presets.PAPER[row], field) for field in ("ways", "shots", "eval_batch")
    }
    # As many query images as at the ways of the training.
    return {**changes, "eval_tasks": max(2, config.eval_tasks * config.ways // changes["ways"])}


def balanced(row: presets.FewShotImages) -> dict[str, Any]:
    """What makes a row's evaluation see as many images in mini-batches of every class alike."""
    batch = max(row.eval_batch, row.ways)
    steps = row.eval_steps * row.eval_batch // batch
    return {"balanced_eval": True, "eval_batch": batch, "eval_steps": steps}


def trained(
    config: presets.FewShotImages, folder: Path, data: Path, mesh: Mesh | None = None
) -> None:
    """Trains, or goes on with a training that was stopped; one that has ended is left alone."""
    if not (folder / "config.json").exists():
        fewshot_run.train(config, data, folder, mesh=mesh)
    elif (found := runs.load_config(folder)) != config:
        raise ValueError(f"{folder} holds another training: {found}.")
    elif not (folder / "results.json").exists():
        fewshot_run.resume(folder, data, mesh=mesh)


def scored(
    config: presets.FewShotImages,
    folder: Path,
    data: Path,
    changes: dict[str, Any],
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The result of the evaluation that `config` asks for, which is done if it was not before."""

    def find() -> dict[str, Any] | None:
        paths = [*folder.glob("results*.json"), *folder.glob("evaluation*.json")]
        found = (json.loads(path.read_text()) for path in paths)
        # Fields that are younger than a result have their defaults in it.
        asked = lambda result: presets.FewShotImages(**result["config"]) == config
        return next((result for result in found if asked(result)), None)

    if (result := find()) is None:
        fewshot_run.score(folder, data, mesh, **changes)
        result = find()
    if result is None or result["meta steps"] != config.meta_steps:
        raise ValueError(f"{folder} has no evaluation of its end with {changes}.")
    return result


def training_seconds(folder: Path) -> float:
    """Seconds of training, over all the pieces that it was done in."""
    lines = (folder / "times.jsonl").read_text().splitlines()
    pieces = {row["from"]: row["seconds"] for row in map(json.loads, lines)}
    return round(sum(pieces.values()), 1)


def learning_curve(folder: Path, points: int = 200) -> dict[str, list[float]]:
    """The training losses, thinned to means over equal stretches."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stretches = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    mean = lambda name, part: float(f"{np.mean([rows[i][name] for i in part]):.4g}")
    curve = {name: [mean(name, s) for s in stretches] for name in ("first_loss", "last_loss")}
    return {"meta steps": [rows[part[-1]]["step"] for part in stretches], **curve}


def sinusoids(options: Options, mesh: Mesh | None = None, *, seeds: int = 10) -> None:
    """The sine waves over ten seeds, by batched Reptile and in the authors' serial setting."""
    settings = {"batched": presets.Sinusoid(), "serial": presets.SERIAL_SINUSOID}
    for setting, start in settings.items():
        found = []
        for seed in range(seeds):
            config = dataclasses.replace(start, seed=seed)
            if options.meta_steps is not None:
                config = dataclasses.replace(config, meta_steps=options.meta_steps)
            folder = options.runs / f"sinusoid-{setting}-seed{seed}"
            if not (folder / "config.json").exists():
                sinusoid_run.train(config, folder, mesh=mesh)
            elif not (folder / "results.json").exists():
                sinusoid_run.resume(folder, mesh=mesh)
            found.append(json.loads((folder / "results.json").read_text()))
        errors = {
            name: {
                "steps": found[0]["mean squared error"][name]["steps"],
                "by seed": [result["mean squared error"][name]["mean"] for result in found],
            }
            for name in found[0]["mean squared error"]
        }
        publish(
            f"sinusoid-{setting}",
            {
                "mean squared error": errors,
                "tasks of each seed": start.eval_tasks,
                "seconds of each seed": [result["seconds"] for result in found],
                "config": dataclasses.asdict(start),
            },
        )


def mini_imagenet_made(options: Options, mesh: Mesh | None = None) -> None:
    """The mini-ImageNet rows' whole path at full image size, on pictures made here.

    Every class is a coarse pattern of colours, every picture that pattern under noise: it says
    that the path works, how long it takes and what memory; of accuracy on photographs, nothing.
    """
    steps = options.meta_steps or 300
    config = dataclasses.replace(
        presets.PAPER["m15"], meta_steps=steps, eval_tasks=100, steps_per_dispatch=10, save_every=50
    )
    folder = options.runs / f"m15-made-{steps}-steps"
    with tempfile.TemporaryDirectory() as data:
        # Elsewhere, for the memory that it takes is not the training's.
        maker = multiprocessing.get_context("spawn").Process(target=made_images, args=(Path(data),))
        maker.start()
        maker.join()
        trained(config, folder, Path(data), mesh)
    result = json.loads((folder / "results.json").read_text())
    publish(
        "m15-made",
        {
            "accuracy": result["accuracy"],
            "tasks": result["tasks"],
            "meta steps": steps,
            "training seconds": training_seconds(folder),
            "seconds of a meta step": training_seconds(folder) / steps,
            "evaluation seconds": result["evaluation seconds"],
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            "learning curve": learning_curve(folder),
            "config": result["config"],
        },
    )


def made_images(folder: Path, per_class: int = 600, size: int = 84) -> None:
    """Writes three pickles in one of mini-ImageNet's usual forms: 64, 16 and 20 classes."""
    random = np.random.default_rng(0)
    for split, classes in {"train": 64, "val": 16, "test": 20}.items():
        images = np.empty((classes * per_class, size, size, 3), np.uint8)
        for label in range(classes):
            pattern = random.integers(64, 192, (7, 7, 3)).repeat(12, 0).repeat(12, 1)
            for index in range(label * per_class, (label + 1) * per_class):
                noise = random.integers(-64, 64, (size, size, 3))
                images[index] = np.roll(pattern, random.integers(-8, 9, 2), (0, 1)) + noise
        names = {
            f"{split}{label:02d}": list(range(label * per_class, (label + 1) * per_class))
            for label in range(classes)
        }
        with open(folder / f"mini-imagenet-cache-{split}.pkl", "wb") as file:
            pickle.dump({"image_data": images, "class_dict": names}, file, protocol=4)


def publish(name: str, content: dict[str, Any]) -> None:
    """Writes what is published, with the command and the machine."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    asked = re.sub(r"--(data|runs)[ =]\S+", r"--\1 DIR", " ".join(sys.argv[1:]))
    command = f"python -m benchmarks.paper {asked}"
    content = {"command": command, **content, "machine": measure.machine()}
    write_json(RESULTS / f"{name}.json", content)


def _rows_from(preset: str) -> tuple[str, ...]:
    """All of Omniglot's rows, for its classifier takes any number of ways: its own first."""
    own = preset.partition("-")[0]
    return (own, *(row for row in ("o15", "o55", "o120", "o520") if row != own))


TRAININGS: dict[str, Training] = {
    "o15": few_shot("o15", ("o15", "o55")),
    "o120": few_shot("o120", ("o120", "o520")),
    **{preset: few_shot(preset, _rows_from(preset)) for preset in presets.BEYOND},
    "sinusoid": sinusoids,
    "m15-made": mini_imagenet_made,
}


def main(argv: list[str]) -> int:
    """Runs the trainings named, or writes the tables."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks.paper")
    if options.names == ("report",):
        paper_report.write()
        return 0
    if unknown := [name for name in options.names if name not in TRAININGS]:
        print(f"no training {', '.join(unknown)}; there are {', '.join(TRAININGS)}, and report")
        return 2
    sharing = processes.Sharing(devices=options.devices)
    with processes.joined(sharing, None, share=options.inner_state != "carried") as (mesh, _):
        for name in options.names:
            TRAININGS[name](options, mesh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
