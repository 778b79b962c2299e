"""The command line: `reptile-jax train | evaluate | presets | ...`."""

import contextlib
import dataclasses
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import jax

try:
    import tyro
except ImportError as error:
    raise SystemExit(
        'reptile-jax: the commands need more: pip install "reptile-jax[cli]"'
    ) from error

from reptile_jax import (
    download,
    fewshot_run,
    meta_training,
    presets,
    processes,
    report,
    runs,
    signals,
    sinusoid_run,
)
from reptile_jax.json_files import to_json, write_json

USAGE = """\
usage: reptile-jax COMMAND ...

  train sinusoid                    the paper's sine waves, in less than a minute
  train omniglot --data DIR         Omniglot, from the two official zip files
  train mini-imagenet --data DIR    mini-ImageNet, in any of its usual layouts
  train images --data DIR           a folder with one folder of images per class
  train --preset NAME --data DIR    a row of the paper (o15, o15t, o55, ..., m55t) or beyond it
  train --resume RUN [--data DIR]   go on with a run that was stopped
  evaluate RUN --data DIR           score a trained run on held-out classes
  adapt RUN --support DIR --query DIR
                                    classify new images of new classes
  download omniglot --out DIR       fetch Omniglot from its official repository
  presets                           the presets and their values

Every command takes --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status; a person's mistake is one line, no traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is no failure
        sys.stdout.reconfigure(errors="replace")
    if not argv or argv[0] in ("-h", "--help"):
        report.say(USAGE)
        return 0 if argv else 2
    try:
        command = _COMMANDS.get(argv[0])
        if command is None:
            raise ValueError(f"there is no command {argv[0]!r}: see reptile-jax --help.")
        _keep_programs()
        with signals.handled(signals.interrupt):
            command(argv[1:])
    except OSError as error:
        report.fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except (ValueError, ImportError, FloatingPointError) as error:
        report.fail(str(error))
        return 1
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report.fail(f"out of memory: ask for smaller sizes, or fewer tasks at once. {error}")
        return 1
    except KeyboardInterrupt as stop:
        report.fail(str(stop) or "interrupted")
        return 128 + getattr(stop, "signum", signal.SIGINT)
    return int(report.lost())


def _keep_programs() -> None:
    """Keeps compiled programs in the user's cache, unless JAX has been told where, or not to."""
    setting = lambda name: getattr(jax.config, f"jax_{name}")
    if setting("compilation_cache_dir") or not setting("enable_compilation_cache"):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reptile_jax"
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except (OSError, RuntimeError):  # read-only, full, or no home: every run compiles
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))


_Sharing: TypeAlias = tyro.conf.OmitArgPrefixes[processes.Sharing]
_DEFAULT = processes.Sharing()


@dataclasses.dataclass(frozen=True)
class _SinusoidOptions:
    config: tyro.conf.OmitArgPrefixes[presets.Sinusoid]
    serial: bool = False  # the authors' serial setting: one task a meta step, ε from 0.1
    out: Path | None = None  # folder of the run; by default a new one under runs/
    tensorboard: bool = False  # also write the metrics as TensorBoard's event files
    sharing: _Sharing = _DEFAULT


@dataclasses.dataclass(frozen=True)
class _FewShotOptions:
    data: Path  # folder of the data set
    config: tyro.conf.OmitArgPrefixes[presets.FewShotImages]
    out: Path | None = None  # folder of the run; by default a new one under runs/
    tensorboard: bool = False  # also write the metrics as TensorBoard's event files
    sharing: _Sharing = _DEFAULT


@dataclasses.dataclass(frozen=True)
class _ResumeOptions:
    resume: Path  # folder of the run
    data: Path | None = None  # folder of the data set, for a run on images
    tensorboard: bool = False  # also write the metrics as TensorBoard's event files
    sharing: _Sharing = _DEFAULT


def _train(argv: list[str]) -> None:
    if any(word.partition("=")[0] == "--resume" for word in argv):
        _resume(tyro.cli(_ResumeOptions, args=argv, prog="reptile-jax train"))
        return
    name, argv = _take_preset(argv)
    what = argv[0] if argv and not argv[0].startswith("-") else None
    rest = argv[1:] if what else argv
    if what == "sinusoid":
        if name is not None:
            raise ValueError(f"preset {name} is for {presets.ALL[name].dataset}, not sinusoid.")
        _train_sinusoid(rest)
        return
    starts = {"omniglot": "o15", "mini-imagenet": "m15", "images": "m15"}
    if what not in starts and not (what is None and (name or "--help" in rest or "-h" in rest)):
        raise ValueError(
            f"train what? sinusoid, {', '.join(starts)}, or --preset with its name; got "
            f"{what or 'nothing'}."
        )
    config = presets.ALL[name or starts[what or "omniglot"]]
    if what is not None:
        if name and what != config.dataset:
            raise ValueError(f"preset {name} is for {config.dataset}, not {what}.")
        config = dataclasses.replace(config, dataset=what)
    options = tyro.cli(
        _FewShotOptions,
        default=_FewShotOptions(tyro.MISSING, config),
        args=rest,
        prog=f"reptile-jax train {what or '--preset NAME'}",
        description="--preset NAME starts from the values of a preset, --resume RUN goes on with "
        "a run that was stopped.",
    )
    if options.config.dataset != config.dataset:
        raise ValueError(f"--dataset is what follows train: train {options.config.dataset} ...")
    joined = processes.joined(options.sharing, options.out, share=_can_share(options.config))
    with joined as (mesh, out), _on_metrics(options) as on_metrics:
        fewshot_run.train(options.config, options.data, out, name, on_metrics, mesh)


def _resume(options: _ResumeOptions) -> None:
    config, data = runs.load_config(options.resume), options.data
    waves = isinstance(config, presets.Sinusoid)
    if waves and data is not None:
        raise ValueError(f"{options.resume} is a run on the sine waves, which takes no --data.")
    joined = processes.joined(options.sharing, options.resume, share=_can_share(config))
    with joined as (mesh, run), _on_metrics(options) as on_metrics:
        if waves:
            sinusoid_run.resume(run, on_metrics, mesh)
        elif data is None:
            raise ValueError(f"{run} is a run on images: give the data set's folder with --data.")
        else:
            fewshot_run.resume(run, data, on_metrics, mesh)


def _can_share(config: runs.Config) -> bool:
    """Whether more devices help, where nobody says how many.

    A network as small as the sine waves' gains nothing, and a state is carried on one device.
    """
    return isinstance(config, presets.FewShotImages) and config.inner_state != "carried"


def _on_metrics(
    options: _SinusoidOptions | _FewShotOptions | _ResumeOptions,
) -> contextlib.AbstractContextManager[meta_training.OnMetrics | None]:
    return meta_training.tensorboard() if options.tensorboard else contextlib.nullcontext()


def _train_sinusoid(argv: list[str]) -> None:
    start = presets.SERIAL_SINUSOID if "--serial" in argv else presets.Sinusoid()
    options = tyro.cli(
        _SinusoidOptions,
        default=_SinusoidOptions(start),
        args=argv,
        prog="reptile-jax train sinusoid",
    )
    joined = processes.joined(options.sharing, options.out, share=_can_share(options.config))
    with joined as (mesh, out), _on_metrics(options) as on_metrics:
        sinusoid_run.train(options.config, out, on_metrics, mesh)


def _take_preset(argv: list[str]) -> tuple[str | None, list[str]]:
    """Takes `--preset NAME` out of the arguments: it decides what the other defaults are."""
    for index, word in enumerate(argv):
        if word == "--preset" or word.startswith("--preset="):
            joined = "=" in word
            values = [word.partition("=")[2]] if joined else argv[index + 1 : index + 2]
            if not values or values[0] not in presets.ALL:
                raise ValueError(f"--preset is one of {', '.join(presets.ALL)}.")
            return values[0], argv[:index] + argv[index + (1 if joined else 2) :]
    return None, argv


@dataclasses.dataclass(frozen=True)
class _EvaluateOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run
    data: Path  # folder of the data set
    eval_tasks: int | None = None  # held-out tasks; like the others, by default the run's value
    eval_steps: int | None = None  # inner steps
    eval_batch: int | None = None
    balanced_eval: bool | None = None  # every mini-batch holds each class as often
    inner_rate: float | None = None  # of the inner optimiser
    transductive: bool | None = None  # which of the two scores is named the score
    ways: int | None = None  # classes of each task; of a run with --classifier zero
    shots: int | None = None  # support images of each class
    query_shots: int | None = None  # query images of each class
    seed: int | None = None  # of the tasks drawn
    sharing: _Sharing = _DEFAULT


def _evaluate(argv: list[str]) -> None:
    given = tyro.cli(_EvaluateOptions, args=argv, prog="reptile-jax evaluate")
    options = dataclasses.asdict(given)
    run, data, _ = options.pop("run"), options.pop("data"), options.pop("sharing")
    changes = {name: value for name, value in options.items() if value is not None}
    with processes.joined(given.sharing, run) as (mesh, run):
        fewshot_run.score(run, data, mesh, **changes)


@dataclasses.dataclass(frozen=True)
class _AdaptOptions:
    run: Annotated[Path, tyro.conf.Positional]  # folder of the run
    support: Path  # folder with one folder of images per class
    query: Path  # folder of the images to classify
    transductive: bool = False  # normalise the query images together
    eval_steps: int | None = None  # inner steps; like eval_batch, by default the run's value
    eval_batch: int | None = None  # images in each mini-batch
    json: Path | None = None  # also write the answers to this file; with - to standard output alone


def _adapt(argv: list[str]) -> None:
    options = tyro.cli(_AdaptOptions, args=argv, prog="reptile-jax adapt")
    to_output = options.json == Path("-")
    if options.json is not None and not to_output:
        if options.json.exists():
            raise FileExistsError(f"{options.json} exists: give another --json, or remove it.")
        if not options.json.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {options.json.parent} for --json.")
    asked = {"eval_steps": options.eval_steps, "eval_batch": options.eval_batch}
    answers = fewshot_run.adapt(
        options.run,
        options.support,
        options.query,
        transductive=options.transductive,
        **{name: value for name, value in asked.items() if value is not None},
    )
    if to_output:
        report.say(to_json(answers))
        return
    report.table(
        f"adapted to {len(answers[0]['probabilities'])} classes of {options.support}",
        ["image", "class", "probability"],
        [
            [
                str(Path(answer["image"]).relative_to(options.query)),
                answer["class"],
                f"{answer['probability']:.3f}",
            ]
            for answer in answers
        ],
    )
    if options.json is not None:
        write_json(options.json, answers)


@dataclasses.dataclass(frozen=True)
class _DownloadOptions:
    out: Path  # folder for the two zip files


def _download(argv: list[str]) -> None:
    if argv[:1] in (["--help"], ["-h"]):
        argv = ["omniglot", "--help"]
    if argv[:1] != ["omniglot"]:
        raise ValueError(
            "download what? Only omniglot can be fetched: download omniglot --out DIR."
        )
    options = tyro.cli(_DownloadOptions, args=argv[1:], prog="reptile-jax download omniglot")
    with report.Downloads() as show:
        paths = download.download_omniglot(options.out, report=show)
    for path in paths:
        report.say(str(path))


def _presets(argv: list[str]) -> None:
    if argv in (["--help"], ["-h"]):
        report.say("usage: reptile-jax presets\n\nThe presets of train --preset and their values.")
        return
    if argv:
        raise ValueError(f"presets takes no arguments, got {' '.join(argv)}.")
    rows = {name: dataclasses.asdict(config) for name, config in presets.PAPER.items()}
    fields = [field.name for field in dataclasses.fields(presets.FewShotImages)]
    varying = [f for f in fields if len({row[f] for row in rows.values()}) > 1]
    report.table(
        "The paper's rows (Nichol et al. 2018, appendix A)",
        ["preset", *(field.replace("_", " ") for field in varying)],
        [[name, *(str(row[f]) for f in varying)] for name, row in rows.items()],
    )
    common = {f: rows["o15"][f] for f in fields if f not in varying}
    listed = lambda values: ", ".join(f"{name}={value}" for name, value in values.items())
    report.say(f"in all: {listed(common)}")
    for name, config in presets.BEYOND.items():
        start, fields = name.partition("-")[0], dataclasses.asdict(config).items()
        changes = {field: value for field, value in fields if value != rows[start][field]}
        report.say(f"{name}: {start} with {listed(changes)}")


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "adapt": _adapt,
    "download": _download,
    "presets": _presets,
}
