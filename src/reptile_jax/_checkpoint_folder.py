"""The folder of a run's checkpoints: where it may be, and what in it is a checkpoint.

Paths are pathlib's, or those of etils for an address such as `gs://BUCKET/FOLDER`: what is called
here both have.
"""

import importlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from reptile_jax._checksums import has_checksums, remove_checksums

LEAVES = "reptile_jax.json"  # written first: it tells a checkpoint from a folder of the user's


def check_path(folder: Path | str) -> None:
    """Raises a ValueError for a folder that Orbax cannot keep arrays in, because of its name."""
    address = _address(folder)
    path = address or str(located(folder).absolute())
    problem = None
    if bad := [part for part in ("\\", "**") if part in path and part != os.sep]:
        problem = f"Orbax takes {' and '.join(bad)} in a path for something else"
    elif address and not address.startswith("gs://"):
        problem = "Orbax keeps arrays on disks of this machine and under gs:// alone"
    elif address:
        try:
            importlib.import_module("google.cloud.storage")
            epath.Path(address).exists()
        except Exception as error:  # of packages, credentials or the network
            problem = (
                "it needs gcsfs (or TensorFlow), google-cloud-storage and access to the bucket "
                f"({first_line(error)})"
            )
    if problem:
        raise ValueError(f"no checkpoint can be kept under {path}: {problem}. Give another folder.")


def located(folder: Path | str) -> Any:
    """The folder as a path, with `~` as the home folder."""
    address = _address(folder)
    return epath.Path(address) if address else Path(os.path.expanduser(folder))


def absolute(path: Any) -> Any:
    """The path as Orbax takes it."""
    return path.absolute() if isinstance(path, Path) else path


def _address(folder: Path | str) -> str | None:
    """The address that a path of the user's is, if it is no path of a disk."""
    path = os.fspath(folder)
    # Two letters at least: one is a drive. `Path` makes one slash of two.
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", path)
    return f"{found[1]}://{path[found.end() :]}" if found else None


def check_room(folder: Any, size: int) -> None:
    """Fails where there is no room for `size` bytes: plainly, and before Orbax in many threads."""
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(folder, Path):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + (1 << 16))  # and Orbax's own files


def set_aside(folder: Any, step: int) -> None:
    """Renames a damaged checkpoint, so that it no longer counts."""
    number, name = 1, f"damaged-{step}"
    while (folder / name).exists():
        number += 1
        name = f"damaged-{step}-{number}"
    (folder / str(step)).rename(folder / name)


def remove(place: Any) -> None:
    """Removes a checkpoint; cut short at any point, it leaves one that is not finished."""
    remove_checksums(place)
    for part in sorted(place.iterdir(), key=lambda part: part.name == LEAVES):
        epath.Path(part).rmtree()
    epath.Path(place).rmtree(missing_ok=True)


def steps(folder: Any) -> list[int]:
    """The steps of which there is a checkpoint of this library, whole or not."""
    if not folder.is_dir():
        return []
    numbered = [path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name)]
    return sorted(int(path.name) for path in numbered if _is_checkpoint(path))


def finished(folder: Any) -> list[int]:
    """The steps whose save was not cut short."""
    return [step for step in steps(folder) if has_checksums(folder / str(step))]


def is_free(place: Any) -> bool:
    """Whether a checkpoint can be written there: not where there is something else."""
    is_empty = place.is_dir() and not any(place.iterdir())
    return not place.exists() or is_empty or _is_checkpoint(place)


def _is_checkpoint(place: Any) -> bool:
    return (place / LEAVES).exists() or has_checksums(place, of=LEAVES)


def first_line(error: Exception) -> str:
    """What an error of the file system, or of Orbax, comes down to."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
