"""What each command does with its options."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import tyro

import reptile_jax as rj
from reptile_jax.app import (
    adapt,
    models,
    pictures,
    presets,
    processes,
    run_folder,
    runner,
    tensorboard,
    terminal,
)
from reptile_jax.app.config import Config, FewShotConfig, precise
from reptile_jax.app.experiments import EXPERIMENTS
from reptile_jax.app.json_files import to_json, write_json

_Config = TypeVar("_Config", bound=Config)
_Sharing = tyro.conf.OmitArgPrefixes[processes.Sharing]
_DEFAULT = processes.Sharing()


@dataclasses.dataclass(frozen=True)
class _TrainOptions(Generic[_Config]):
    config: tyro.conf.OmitArgPrefixes[_Config]
    data: Path | None = None  # folder of the data set, for images
    out: Path | None = None  # folder of the run; by default a new one under runs/
    tensorboard: bool = False  # also write the metrics as TensorBoard's event files
    sharing: _Sharing = _DEFAULT


@dataclasses.dataclass(frozen=True)
class _ResumeOptions:
    resume: Path  # folder of the run
    data: Path | None = None  # folder of the data set, for a run on images
    tensorboard: bool = False  # also write the metrics as TensorBoard's event files
    sharing: _Sharing = _DEFAULT


def train(argv: list[str]) -> None:
    """A new run, or with --resume one that stopped."""
    if any(word.partition("=")[0] == "--resume" for word in argv):
        resume(tyro.cli(_ResumeOptions, args=argv, prog="reptile-jax train"))
        return
    what, name, rest = _named(argv)
    start = presets.ALL[name] if name else EXPERIMENTS[what].start
    options_of: Any = _TrainOptions
    options = tyro.cli(
        options_of[type(start)],
        default=_TrainOptions(start),
        args=rest,
        prog=f"reptile-jax train {what}",
        description="--preset NAME starts from the values of a preset, --resume RUN goes on with "
        "a run that was stopped.",
    )
    config = options.config
    if config.experiment != what:
        raise ValueError(f"--dataset is what follows train: train {config.experiment} ...")
    joined = processes.joined(options.sharing, options.out, share=config.shares_devices)
    with joined as (mesh, out), _on_metrics(options.tensorboard) as on_metrics:
        runner.train(config, options.data, out, name=name, on_metrics=on_metrics, mesh=mesh)


def resume(options: _ResumeOptions) -> None:
    """Goes on with a run."""
    share = run_folder.load_config(options.resume).shares_devices
    joined = processes.joined(options.sharing, options.resume, share=share)
    with joined as (mesh, run), _on_metrics(options.tensorboard) as on_metrics:
        runner.resume(run, options.data, on_metrics=on_metrics, mesh=mesh)


def _on_metrics(to_tensorboard: bool) -> contextlib.AbstractContextManager[Any]:
    return tensorboard.tensorboard() if to_tensorboard else contextlib.nullcontext()


def _named(argv: list[str]) -> tuple[str, str | None, list[str]]:
    """The experiment and the preset that the arguments of `train` name, and the other arguments."""
    name, argv = _take_preset(argv)
    what, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    if what is None and name in presets.ALL:
        what = presets.ALL[name].experiment
    if what is None and ("--help" in rest or "-h" in rest):
        what = "omniglot"
    problem = None
    if name is not None and name not in presets.ALL:
        problem = f"--preset is one of {', '.join(presets.ALL)}."
    elif what not in EXPERIMENTS:
        given = what or "nothing"
        problem = f"train what? {', '.join(EXPERIMENTS)}, or --preset with its name; got {given}."
    elif name and presets.ALL[name].experiment != what:
        problem = f"preset {name} is for {presets.ALL[name].experiment}, not {what}."
    if problem or what is None:
        raise ValueError(problem)
    return what, name, rest


def _take_preset(argv: list[str]) -> tuple[str | None, list[str]]:
    """Takes `--preset NAME` out of the arguments: it decides what the other defaults are."""
    for index, word in enumerate(argv):
        if word == "--preset":
            return "".join(argv[index + 1 : index + 2]), argv[:index] + argv[index + 2 :]
        if word.startswith("--preset="):
            return word.partition("=")[2], argv[:index] + argv[index + 1 :]
    return None, argv


@dataclasses.dataclass(frozen=True)
class _EvaluateOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run
    data: Path | None = None  # folder of the data set, for a run on images
    eval_tasks: int | None = None  # held-out tasks; like the others, by default the run's value
    eval_steps: int | None = None  # inner steps
    eval_batch: int | None = None
    balanced_eval: bool | None = None  # every mini-batch shows each class as often
    inner_rate: float | None = None  # of the inner optimiser
    eval_rate: float | None = None  # the same, where evaluation has its own
    transductive: bool | None = None  # which of the two scores is named the score
    eval_ways: int | None = None  # classes of each task, if the classifier is not learned
    shots: int | None = None  # support images of each class
    query_shots: int | None = None  # query images of each class
    eval_shots: int | None = None  # points given of a sine wave
    eval_viscosity: tuple[float, float] | None = None  # lowest and highest, of equations
    seed: int | None = None  # of the tasks drawn
    sharing: _Sharing = _DEFAULT


def evaluate(argv: list[str]) -> None:
    """Scores a trained run."""
    options = tyro.cli(_EvaluateOptions, args=argv, prog="reptile-jax evaluate")
    given = {name: value for name, value in vars(options).items() if value is not None}
    changes = {name: given[name] for name in given.keys() - {"run", "data", "sharing"}}
    with processes.joined(options.sharing, options.run) as (mesh, run):
        runner.evaluate(run, options.data, mesh=mesh, **changes)


@dataclasses.dataclass(frozen=True)
class _PlotOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run


def plot(argv: list[str]) -> None:
    """Draws a run's pictures anew, from its folder alone, and its report."""
    options = tyro.cli(_PlotOptions, args=argv, prog="reptile-jax plot")
    for path in pictures.draw(options.run):
        terminal.say(str(path))


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


def adapt_run(argv: list[str]) -> None:
    """Classifies images of new classes."""
    options = tyro.cli(_AdaptOptions, args=argv, prog="reptile-jax adapt")
    _check_free(options.json)
    asked = {"eval_steps": options.eval_steps, "eval_batch": options.eval_batch}
    query = tuple(itertools.chain(*options.query))
    answers = adapt.adapt(
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
    _check_free(options.json)
    query = tuple(itertools.chain(*options.query))
    answers = adapt.predict(options.model, query, transductive=options.transductive)
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


def _check_free(path: Path | None) -> None:
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
    ways: int | None = None  # classes; by default the run's
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


@dataclasses.dataclass(frozen=True)
class _DownloadOptions:
    out: Path  # folder for the two zip files


def download(argv: list[str]) -> None:
    """Fetches Omniglot."""
    if argv[:1] in (["--help"], ["-h"]):
        argv = ["omniglot", "--help"]
    if argv[:1] != ["omniglot"]:
        raise ValueError(
            "download what? Only omniglot can be fetched: download omniglot --out DIR."
        )
    options = tyro.cli(_DownloadOptions, args=argv[1:], prog="reptile-jax download omniglot")
    with terminal.Downloads() as show:
        paths = rj.datasets.download_omniglot(options.out, report=show)
    for path in paths:
        terminal.say(str(path))


def list_presets(argv: list[str]) -> None:
    """Shows the presets and their values."""
    if argv in (["--help"], ["-h"]):
        terminal.say("usage: reptile-jax presets", "", "The presets and their values.")
        return
    if argv:
        raise ValueError(f"presets takes no arguments, got {' '.join(argv)}.")
    rows = {name: dataclasses.asdict(config) for name, config in presets.PAPER.items()}
    fields = [field.name for field in dataclasses.fields(FewShotConfig)]
    varying = [f for f in fields if len({row[f] for row in rows.values()}) > 1]
    terminal.table(
        "The paper's rows (Nichol et al. 2018, appendix A)",
        ["preset", *(field.replace("_", " ") for field in varying)],
        [[name, *(str(row[f]) for f in varying)] for name, row in rows.items()],
    )
    common = {f: rows["o15"][f] for f in fields if f not in varying}
    listed = lambda values: ", ".join(f"{name}={value}" for name, value in values.items())
    terminal.say(f"in all: {listed(common)}")
    for name, config in presets.ALL.items():
        if name not in presets.PAPER:
            base, changes = _changes(name, config)
            terminal.say(f"{name}: {base} with {listed(changes)}")


def _changes(name: str, config: Config) -> tuple[str, dict[str, Any]]:
    """The row or the experiment that a preset's name begins with, and what it changes."""
    base = name.partition("-")[0]
    start = presets.PAPER.get(base) or EXPERIMENTS[base].start
    values = dataclasses.asdict(config).items()
    return base, {field: value for field, value in values if value != getattr(start, field)}


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "adapt": adapt_run,
    "predict": predict,
    "export": export,
    "demo": demo,
    "download": download,
    "presets": list_presets,
}
