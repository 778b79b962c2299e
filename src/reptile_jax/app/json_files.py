"""JSON that a crash leaves readable: files replaced as a whole, and lines added one by one."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def plain(value: Any) -> Any:
    """What JSON can say: arrays become lists, and numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)


def to_json(value: Any) -> str:
    """JSON for people to read, of what `plain` can turn into it."""
    return json.dumps(plain(value), indent=2, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file for people to read, all of it or nothing."""
    _replace(path, (to_json(value) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is damaged, with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Adds one line to a file of JSON lines."""
    line = json.dumps(plain(row), allow_nan=False) + "\n"
    with _naming(path), path.open("ab") as file:
        file.write(line.encode())


def keep_json_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keeps the lines of a file of JSON lines that are `wanted`; a broken last one is dropped.

    Raises:
      ValueError: if a line before the last is broken; the file stays as it is.
    """
    *lines, last = path.read_bytes().split(b"\n")
    if _is_json(last):  # only its end of line is missing
        lines.append(last)
    kept = []
    for number, line in enumerate(lines, 1):
        if not _is_json(line):
            raise ValueError(f"line {number} of {path} is not JSON: mend it, or remove it.")
        try:
            if wanted(json.loads(line)):
                kept.append(line + b"\n")
        except (KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is of no run: {error!r}.") from error
    _replace(path, b"".join(kept))


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # of UTF-8 as well
        return False


def _replace(path: Path, content: bytes) -> None:
    """Readers, and whoever comes after a crash, find the old file or the new one."""
    new = path.with_name(path.name + ".tmp")
    with _naming(path):
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in an error of writing, where the system does not: on a full disk, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
