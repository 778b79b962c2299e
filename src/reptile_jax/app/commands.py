"""What each command does with its options."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

import reptile_jax as rj
from reptile_jax.app import (
    model_commands,
    pictures,
    presets,
    processes,
    run_folder,
    runner,
    tensorboard,
    terminal,
)
from reptile_jax.app.config import Config, FewShotConfig
from reptile_jax.app.experiments import EXPERIMENTS

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
        values = vars(config).items()
        option = next((name for name, value in values if value == config.experiment), "experiment")
        raise ValueError(f"--{option} is what follows train: train {config.experiment} ...")
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
    eval_batch: int | None = None  # examples in each mini-batch
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
    "adapt": model_commands.adapt,
    "predict": model_commands.predict,
    "export": model_commands.export,
    "demo": model_commands.demo,
    "download": download,
    "presets": list_presets,
}
