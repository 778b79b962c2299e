"""Files that a crash leaves readable: written as a whole, or JSON added line by line."""

import contextlib
import errno
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

_CHECKSUM = "file checksum"  # with a space, as no field of a configuration


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


def write_json(path: Path, value: Any, *, is_checked: bool = False) -> None:
    """Writes a JSON file for people to read, all of it or nothing.

    Where it `is_checked`, the value is a dict, and a checksum among its fields tells `read_json`
    whether it is as it was written.
    """
    fields = {**value, _CHECKSUM: _checksum(value)} if is_checked else value
    write_whole(path, (to_json(fields) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      OSError: if it cannot be opened, or is no regular file.
      ValueError: if it is damaged, with its name.
    """
    check_regular(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        has_sum = isinstance(value, dict) and _CHECKSUM in value
        changed = has_sum and value.pop(_CHECKSUM) != _checksum(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if changed:
        raise ValueError(f"{path} is damaged: it is not as it was written. Put it back.")
    return value


def _checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(plain(fields), sort_keys=True).encode())


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Adds one line to a file of JSON lines."""
    check_regular(path)
    line = json.dumps(plain(row), allow_nan=False) + "\n"
    with _naming(path), path.open("ab") as file:
        file.write(line.encode())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines that can be read: none, if there is no file."""
    check_regular(path)
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for row in map(_row, lines) if row is not None]


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a file of JSON lines, all of it or nothing."""
    lines = (json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
    write_whole(path, "".join(lines).encode())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # of UTF-8 as well
        return None
    return row if isinstance(row, dict) else None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file: readers, and whoever comes after a crash, find the old one or the new one.

    Raises:
      OSError: if it cannot be written, with its name; nothing is left of the new one.
    """
    new = path.with_name(f".{path.name}.reptile-jax")  # nobody else's name
    if path.is_dir():
        raise OSError(errno.EISDIR, "this is a folder, in the place of a file", str(path))
    with _naming(path):
        new.unlink(missing_ok=True)
        try:
            with new.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def check_regular(path: Path) -> None:
    """Raises an OSError for a folder, or for what would be waited for: a FIFO, a device."""
    if path.exists() and not path.is_file():
        kind = "a folder, in the place of a file" if path.is_dir() else "no regular file"
        raise OSError(errno.EINVAL, f"this is {kind}", str(path))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in an error of writing, where the system does not: on a full disk, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
