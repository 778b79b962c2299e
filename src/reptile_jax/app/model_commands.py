"""The commands that use a trained model: `adapt`, `predict`, `export` and `demo`."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

import reptile_jax as rj
from reptile_jax.app import adapt as adapting
from reptile_jax.app import models, terminal
from reptile_jax.app.config import precise
from reptile_jax.app.json_files import to_json, write_json

# Both --query A B and --query A --query B.
_Several: TypeAlias = tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]]


@dataclasses.dataclass(frozen=True)
class _AdaptOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run, or omniglot-5way and the like
    support: Path  # folder with one folder of images per class
    query: _Several = ()  # images to classify, and folders of them
    transductive: bool = False  # normalise the query images together
    eval_steps: int | None = None  # inner steps; like eval_batch, by default the run's value
    eval_batch: int | None = None  # images in each mini-batch
    save: Path | None = None  # a new folder, to keep the adapted model in for predict
    json: Path | None = None  # also write the answers to this file; with - to standard output alone


@dataclasses.dataclass(frozen=True)
class _PredictOptions:
    model: Annotated[Path, tyro.conf.Positional]  # folder that adapt --save made
    query: _Several  # images to classify, and folders of them
    transductive: bool | None = None  # normalise them together; by default as adapt was told
    json: Path | None = None  # also write the answers to this file; with - to standard output alone


def adapt(argv: list[str]) -> None:
    """Classifies images of new classes."""
    options = tyro.cli(_AdaptOptions, args=argv, prog="reptile-jax adapt")
    _check_writable(options.json)
    asked = {"eval_steps": options.eval_steps, "eval_batch": options.eval_batch}
    query = tuple(itertools.chain(*options.query))
    answers = adapting.adapt(
        options.run,
        options.support,
        query,
        transductive=options.transductive,
        save=options.save,
        **{name: value for name, value in asked.items() if value is not None},
    )
    _show(f"adapted to {_number(answers)} of {options.support}", answers, query, options.json)
    if options.save is not None and options.json != Path("-"):
        terminal.say(f"the adapted model is in {options.save}")


def predict(argv: list[str]) -> None:
    """Classifies images with a model that was adapted before."""
    options = tyro.cli(_PredictOptions, args=argv, prog="reptile-jax predict")
    _check_writable(options.json)
    query = tuple(itertools.chain(*options.query))
    answers = adapting.predict(options.model, query, transductive=options.transductive)
    _show(f"{_number(answers)} of {options.model}", answers, query, options.json)


def _number(answers: list[dict[str, Any]]) -> str:
    return f"{len(answers[0]['probabilities'])} classes" if answers else "the classes"


def _show(
    title: str, answers: list[dict[str, Any]], query: tuple[Path, ...], json: Path | None
) -> None:
    """Shows the answers as a table and writes them, or only writes them to standard output."""
    if json == Path("-"):
        terminal.say(*to_json(answers).splitlines())
        return
    # Of one folder, the paths in it.
    place = query[0] if len(query) == 1 and query[0].is_dir() else Path()
    shown = lambda image: str(image.relative_to(place) if image.is_relative_to(place) else image)
    rows = [
        [shown(Path(answer["image"])), answer["class"], f"{answer['probability']:.3f}"]
        for answer in answers
    ]
    terminal.table(title, ["image", "class", "probability"], rows) if rows else terminal.say(title)
    if json is not None:
        write_json(json, answers)


def _check_writable(path: Path | None) -> None:
    """Raises a ValueError for a file that --json cannot write."""
    problem = None
    if path is None or path == Path("-"):
        return
    if path.exists():
        problem = f"{path} exists: give another --json, or remove it."
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent} for --json."
    if problem:
        raise ValueError(problem)


@dataclasses.dataclass(frozen=True)
class _ExportOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run, or omniglot-5way and the like
    out: Path  # a new file; FILE.json and FILE.safetensors go beside it
    ways: int | None = None  # classes; by default those of the run's evaluation
    transductive: bool = False  # normalise the query images together
    eval_steps: int | None = None  # inner steps; by default the run's value


def export(argv: list[str]) -> None:
    """Writes a model with its adaptation as a program that needs JAX alone."""
    options = tyro.cli(_ExportOptions, args=argv, prog="reptile-jax export")
    model = models.adaptable(options.run)
    if options.ways is not None:
        model = model.for_ways(options.ways)
    if options.eval_steps is not None:
        model = dataclasses.replace(model, inner_steps=options.eval_steps)
    with precise(model.card["config"].get("matmul_precision")):
        rj.export(model, options.out, transductive=options.transductive)
    terminal.say(f"{options.run} is in {options.out}, with {options.out}.json and .safetensors")


@dataclasses.dataclass(frozen=True)
class _DemoOptions:
    # Folder of a run, or omniglot-20way and the like; by default omniglot-5way and sine-waves.
    run: Annotated[Path | None, tyro.conf.Positional] = None
    port: int | None = None  # of this machine; by default a free one
    open: bool = True  # open the page in the browser


def demo(argv: list[str]) -> None:
    """Opens a page to draw on, whose model adapts as one watches."""
    options = tyro.cli(_DemoOptions, args=argv, prog="reptile-jax demo")
    from reptile_jax.app.demo import command  # the page alone needs a server

    command.run(options.run, options.port, opens=options.open)
