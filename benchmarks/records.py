"""The JSON that every figure comes from: how measurements are written, and found again.

A record is one file for one table or figure. A table's record has `title`, `command`, `machine`,
`columns`, `rows` and `data`. A record of an experiment has `arms`: one entry for each training,
added as it ends, with its settings, machine and figures. No measurement is overwritten unless the
caller asks for that.
"""

import datetime
import functools
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.tables import Table
from reptile_jax.app import json_files, run_folder

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure depends on: versions, device, flags, cores and their load."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        **run_folder.environment(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.date.today().isoformat(),
    }


def command_of(words: Sequence[str]) -> str:
    """The command to type again, with DIR for the folders of this machine."""
    asked = re.sub(r"--(data|runs|out)[ =]\S+", r"--\1 DIR", " ".join(words))
    return f"python -m benchmarks {asked}"


def read(path: Path) -> dict[str, Any]:
    """A record, or an empty one if there is no such file. Do not change what it returns."""
    return _parsed(path, path.stat().st_mtime_ns) if path.exists() else {}


@functools.lru_cache(maxsize=16)  # tables look many arms up in one file
def _parsed(path: Path, changed: int) -> dict[str, Any]:
    del changed  # a key of the cache
    return json.loads(path.read_text())


def check_free(path: Path, fresh: bool) -> None:
    """Refuses to measure what is measured already; called before the measurement starts.

    Raises:
      SystemExit: if the record exists and `fresh` does not allow to replace it.
    """
    if path.exists() and not fresh:
        raise SystemExit(
            f"{path} has this measurement already: give --fresh to replace it, or --out DIR to "
            "write to another folder."
        )


def save(path: Path, table: Table, command: str, on: Mapping[str, Any] | None = None) -> None:
    """Writes a table and its data; call `check_free` before you measure.

    Args:
      command: what to type to measure it again.
      on: the machine that it was measured on; by default this one.
    """
    about = {"title": table.title, "command": command, "machine": on or machine()}
    rest = {"columns": table.columns, "rows": table.rows, "data": table.data}
    _write(path, {**about, **rest})


def update(path: Path, about: Mapping[str, Any]) -> None:
    """Replaces a record's title, table and the like; its arms stay."""
    old = read(path)
    _write(path, {**old, **about, "arms": old.get("arms", [])})


def add_arm(path: Path, about: Mapping[str, Any], arm: Mapping[str, Any]) -> None:
    """Adds an arm to a record; an earlier one with the same name stays, and the newest counts.

    Args:
      about: the record's title, command and the like; these are replaced.
      arm: has "arm" (its name), "settings" and "data".
    """
    arms = [*read(path).get("arms", [])]
    run = 1 + max((a["run"] for a in arms if a["arm"] == arm["arm"]), default=0)
    arms.append({"arm": arm["arm"], "run": run, **{k: v for k, v in arm.items() if k != "arm"}})
    _write(path, {**read(path), **about, "arms": arms})


def stored(
    path: Path, arm: str, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The newest arm with this name and exactly these settings, or None.

    Args:
      defaults: of settings that older arms may lack.
    """
    wanted = json_files.plain(settings)
    found = [
        content
        for content in read(path).get("arms", [])
        if content["arm"] == arm and {**(defaults or {}), **content["settings"]} == wanted
    ]
    return max(found, key=lambda content: content["run"], default=None)


def run(
    path: Path,
    about: Mapping[str, Any],
    arm: str,
    settings: Mapping[str, Any],
    measured: Callable[[], Mapping[str, Any]],
    *,
    fresh: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The stored arm with these settings; otherwise runs `measured()` and adds what it returns.

    Args:
      path: of the record.
      about: the record's title and command.
      arm: its name.
      settings: all that the figures depend on besides the code and the machine; plain values.
      measured: returns the figures, a pytree of arrays and plain values.
      fresh: measure again and keep both.
      defaults: as in `stored`.
    """
    if not fresh and (there := stored(path, arm, settings, defaults)) is not None:
        print(f"{path.stem}/{arm}: measured already", flush=True)
        return there
    begun = time.monotonic()
    data = json_files.plain(jax.device_get(measured()))
    seconds = round(time.monotonic() - begun, 1)
    content = {"arm": arm, "settings": json_files.plain(settings), "seconds": seconds}
    add_arm(path, about, {**content, "machine": machine(), "data": data})
    print(f"{path.stem}/{arm}: {seconds:.0f} s", flush=True)
    return stored(path, arm, settings)


def newest(path: Path) -> dict[str, dict[str, Any]]:
    """The newest arm under each name, in the order of the file."""
    found: dict[str, dict[str, Any]] = {}
    for arm in read(path).get("arms", []):
        if arm["arm"] not in found or arm["run"] > found[arm["arm"]]["run"]:
            found[arm["arm"]] = arm
    return found


def _write(path: Path, content: Any) -> None:
    """Writes all of it or nothing: a run that stops damages no record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(_text(json_files.plain(content)) + "\n")
    os.replace(unfinished, path)


def _text(value: Any, levels: int = 2) -> str:
    """JSON with line breaks in the outer levels: a new arm is one new line in a diff."""
    compact = lambda value: json.dumps(value, allow_nan=False)
    if not levels or not value or not isinstance(value, dict | list):
        return compact(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_text(item, levels - 1) for item in value) + "\n]"
    items = (f"{compact(key)}: {_text(item, levels - 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + "\n}"
