"""Checksums beside a checkpoint's files: with them, it is known to be whole."""

import json
import os
import zlib
from pathlib import Path

_SUMS = "checksums.json"


class Damaged(Exception):
    """A checkpoint is not as it was written."""


def write_checksums(place: Path) -> None:
    """Writes the checksums whole or not at all: with them, the checkpoint is known to be good."""
    sums = json.dumps(_sums(place), indent=2)
    new = place / (_SUMS + ".tmp")
    with new.open("w") as file:
        file.write(sums)
        file.flush()
        os.fsync(file.fileno())
    new.replace(place / _SUMS)


def is_whole(place: Path) -> bool:
    """Whether the checkpoint is known to be whole: one stopped before its checksums may be, too."""
    if not (place / _SUMS).exists():
        return False
    try:
        sums = json.loads((place / _SUMS).read_text())
    except ValueError:
        sums = None
    if not isinstance(sums, dict):
        sums = {_SUMS: "another"}
    try:
        now = _sums(place)
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f"the checkpoint {place} is damaged ({first_line(error)})") from error
    if bad := sorted(name for name, value in sums.items() if now.get(name) != value):
        kind = "missing" if bad[0] != _SUMS and bad[0] not in now else "changed"
        raise Damaged(f"the checkpoint {place} is damaged ({bad[0]} is {kind})")
    return True


def _sums(place: Path) -> dict[str, int]:
    """The checksum of every file of a checkpoint."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != _SUMS)
    return {str(path.relative_to(place)): _sum(path) for path in files}


def _sum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value


def first_line(error: Exception) -> str:
    """What an error of the file system, or of Orbax, comes down to."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
