"""Checksums beside a checkpoint's files, written last: with them, it is known to be whole."""

import contextlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

_SUMS = "checksums.json"


class Damaged(Exception):
    """A checkpoint is not as it was written."""


def write_checksums(place: Any) -> None:
    """Writes the checksums whole or not at all."""
    sums = json.dumps(dict(_sums(place)), indent=2)
    new = place / (_SUMS + ".tmp")
    with new.open("w") as file:
        file.write(sums)
        file.flush()
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # not of a local disk
            os.fsync(file.fileno())
    new.replace(place / _SUMS)


def has_checksums(place: Any, of: str = "") -> bool:
    """Whether there are checksums and, if `of` is given, whether they include that file."""
    sums = place / _SUMS
    if of:
        return sums.is_file() and of.encode() in sums.read_bytes()
    return sums.exists()


def remove_checksums(place: Any) -> None:
    """What is left is known not to be whole."""
    (place / _SUMS).unlink(missing_ok=True)


def check_whole(place: Any) -> None:
    """Raises `Damaged` unless every file that has a checksum is there as it was written."""
    sums, path = None, place / _SUMS
    with contextlib.suppress(ValueError, RecursionError):
        sums = json.loads(path.read_bytes()) if path.is_file() else None
    if not isinstance(sums, dict):
        sums = {_SUMS: "another"}
    try:
        now = dict(_sums(place))
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f"the checkpoint {place} is damaged ({error.strerror or error})") from error
    if bad := sorted(name for name, value in sums.items() if now.get(name) != value):
        kind = "missing" if bad[0] != _SUMS and bad[0] not in now else "changed"
        raise Damaged(f"the checkpoint {place} is damaged ({bad[0]} is {kind})")


def _sums(place: Any, under: str = "") -> Iterator[tuple[str, int]]:
    """The checksum of every file of a checkpoint by its path there.

    There is none of what is no regular file: reading it might never end.
    """
    for path in sorted(place.iterdir()):
        if path.is_dir():
            yield from _sums(path, f"{under}{path.name}/")
        elif path.is_file() and (under or not path.name.startswith(_SUMS)):
            yield under + path.name, _sum(path)


def _sum(path: Any) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value
