"""A run: a folder that keeps its configuration, metrics, checkpoints, results and pictures."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax

import reptile_jax as rj
from reptile_jax.app import signals, terminal
from reptile_jax.app.config import Config
from reptile_jax.app.experiments import EXPERIMENTS
from reptile_jax.app.json_files import check_regular, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


def create(out: Path | None, name: str, config: Config, files: Mapping[str, Any]) -> Path:
    """Makes the folder of a new run and writes its configuration there.

    Args:
      out: the folder; by default `runs/<name>`, or the next free `runs/<name>-<number>`.
      files: what else the run needs, by the name of its JSON file.

    Raises:
      FileExistsError: if `out` exists and is not an empty folder: a run is never overwritten.
      ValueError: for a path that no checkpoint can be kept under.
    """
    check_free(out)
    folder = out or _make_next(Path("runs") / name)
    folder.mkdir(parents=True, exist_ok=True)
    with emptied_on_failure(folder):
        for file, content in files.items():
            write_json(folder / f"{file}.json", content, is_checked=isinstance(content, dict))
        # The last, since with it the folder is that of a run.
        fields = {"experiment": config.experiment, **dataclasses.asdict(config)}
        write_json(folder / "config.json", fields, is_checked=True)
    return folder


@contextlib.contextmanager
def emptied_on_failure(folder: Path) -> Iterator[None]:
    """If making what the folder is for fails, leaves nothing new in it: the next try finds it free.

    What was there before stays.
    """
    inside = lambda: set(folder.iterdir()) if folder.is_dir() else set()
    before = inside()
    try:
        yield
    except BaseException:
        for path in inside() - before:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def check_free(out: Path | None, what: str = "run", option: str = "--out") -> None:
    """Raises as `create` does, where a run cannot be, or what else an option names a folder for."""
    check_local(str(out or ""))
    rj.checkpoint.check_path(out or Path())
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists, and a {what} is never overwritten: give another {option}, or remove it."
        )


def check_local(path: str) -> None:
    """Raises a ValueError for an address such as gs://BUCKET/FOLDER: a run is locked, and added to.

    In a script, `checkpoint.save` takes those that it can.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):  # a drive has one letter
        raise ValueError(f"{path} is no folder of this machine: mount it, or copy it.")


def load_config(folder: Path) -> Config:
    """The configuration of a run.

    Raises:
      FileNotFoundError: if the folder is not that of a run.
      ValueError: if the configuration is of another version, or of an experiment that is not
        registered.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.json.")
    fields = read_json(path)
    name = fields.get("experiment") if isinstance(fields, dict) else None
    if isinstance(name, str) and name not in EXPERIMENTS:
        raise ValueError(
            f"{folder} is a run of the experiment {name!r}, which is not registered: in Python, "
            "add it to reptile_jax.app.experiments.EXPERIMENTS, then call "
            "reptile_jax.app.runner.resume or evaluate."
        )
    try:
        kind = type(EXPERIMENTS[fields.pop("experiment")].start)
        types = {field: _types_in(hint) for field, hint in get_type_hints(kind).items()}
        config = kind(**{field: _typed(fields[field], types.get(field, set())) for field in fields})
        config.check()
        return config
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this version of reptile_jax: {error}.") from error


def _typed(value: Any, types: Set[Any]) -> Any:
    """A value from JSON, which has no tuples and no paths, for a field of these types."""
    if isinstance(value, list) and tuple in types:
        return tuple(_typed(item, types) for item in value)
    return Path(value) if isinstance(value, str) and Path in types and str not in types else value


def _types_in(kind: Any) -> set[Any]:
    """The types in an annotation: `tuple` and `int` in `tuple[int, ...]`."""
    return {get_origin(kind) or kind}.union(*map(_types_in, get_args(kind)))


def check_data(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the data are those that the run was made with.

    So no class is held out in one part of a run and trained on in another.
    """
    for name, fact in facts.items():
        if read_json(folder / f"{name}.json") != fact:
            raise ValueError(
                f"the data set is not the one that {folder} was made with (its {name}.json): give "
                "the data as it was, or start a new run."
            )


def restore(folder: Path, first_state: Callable[[], rj.MetaState]) -> rj.MetaState:
    """The newest good state of a run.

    Raises:
      FileNotFoundError: if it was stopped before its first checkpoint.
      ValueError: as `checkpoint.restore`.
    """
    like = jax.eval_shape(first_state)
    return rj.checkpoint.restore(folder / "checkpoints", like, on_damage=terminal.fail)


def restore_or_start(folder: Path, first_state: Callable[[], rj.MetaState]) -> rj.MetaState:
    """Where a run goes on: at its newest good state, or at its first.

    Raises:
      ValueError: as `checkpoint.restore`, and if its checkpoints have gone.
    """
    try:
        return restore(folder, first_state)
    except FileNotFoundError as error:
        times = folder / "times.jsonl"  # a line for each checkpoint there ever was
        if (folder / "results.json").exists() or (times.exists() and times.stat().st_size):
            raise ValueError(
                f"{error} The run had checkpoints: put them back, or start a new run."
            ) from error
        return first_state()


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Inside, the run is this process's alone; if a signal ends that, says how to go on with it.

    Raises:
      ValueError: if another process is at work on the run.
    """
    try:
        with _locked(folder):
            yield
    except signals.Interrupted as stop:
        needs_data = EXPERIMENTS[load_config(folder).experiment].needs_data
        data = " --data DIR" if needs_data else ""
        command = f"reptile-jax train --resume {shlex.quote(str(folder))}{data}"
        stop.args = (f"{stop}; go on with: {command}",)
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the run; the system takes the lock back however the process ends."""
    path = folder / ".lock"
    check_regular(path)
    with path.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"another process is at work on {folder}: wait for it, or stop it first."
                ) from error
            except OSError:  # a file system without locks
                pass
        yield


def store(folder: Path, name: str, seconds: float, results: dict[str, Any]) -> Path:
    """Writes results, with the time taken and the environment; returns the file.

    It is `<name>.json`, or the next free `<name>-<number>.json`.
    """
    path = _next_free(folder / f"{name}.json")
    write_json(path, {"seconds": round(seconds, 1), **results, "environment": environment()})
    return path


def environment() -> dict[str, Any]:
    """What a figure depends on besides the configuration."""
    versions = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.device_kind} x {jax.device_count()}",
        "machine": platform.machine(),
    }


def _make_next(path: Path) -> Path:
    """Makes the next free folder; of two runs that start at once each gets its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            (folder := _next_free(path)).mkdir()
            return folder


def _next_free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
