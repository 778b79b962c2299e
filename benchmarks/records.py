"""An experiment's arms on disk: each is written as it ends, and none is ever overwritten."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import measure
from reptile_jax import json_files, report


def stored(
    folder: Path, arm: str, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """What an arm left with just these settings: the newest, if it was run afresh; else None.

    Args:
      defaults: of settings that older files may lack.
    """
    wanted, found = json.loads(_text(settings)), []
    for path in folder.glob(f"{arm}*.json"):
        content = json.loads(path.read_text())
        if content["arm"] == arm and {**(defaults or {}), **content["settings"]} == wanted:
            found.append(content)
    return max(found, key=lambda content: content["run"], default=None)


def run(
    folder: Path,
    arm: str,
    settings: Mapping[str, Any],
    measured: Callable[[], Mapping[str, Any]],
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """The arm as it is stored, or `measured()` now, written to a file of its own.

    Args:
      folder: of the experiment and its size.
      arm: its name, which is a file name too.
      settings: all that its figures depend on besides the code and the machine, plain values.
      measured: returns the figures, a pytree of arrays and plain values.
      fresh: measure again although it is there, and keep both; the newest counts.
    """
    if not fresh and (there := stored(folder, arm, settings)) is not None:
        report.say(f"{folder.name}/{arm}: measured already")
        return there
    begun = time.monotonic()
    data = json_files.plain(jax.device_get(measured()))
    seconds = round(time.monotonic() - begun, 1)
    number, path = 1, folder / f"{arm}.json"
    while path.exists():
        number += 1
        path = folder / f"{arm}.{number}.json"
    content = {
        "arm": arm,
        "run": number,
        "settings": settings,
        "seconds": seconds,
        "machine": measure.machine(),
        "data": data,
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(_text(content) + "\n")
    os.replace(unfinished, path)
    report.say(f"{folder.name}/{arm}: {seconds:.0f} s")
    return json.loads(_text(content))


def _text(value: Any) -> str:
    return json.dumps(json_files.plain(value), allow_nan=False)
