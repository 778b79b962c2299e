"""The files of a folder, and which of them are images."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from reptile_jax.datasets.images import endings, listed

ClassFiles: TypeAlias = Mapping[str, Sequence[Path]]  # class name → its image files


def class_folders(folder: str | Path) -> dict[str, list[Path]]:
    """The class folders in `folder`: class name → its image files, both sorted by name.

    Hidden entries, folders whose name starts with two underscores, files that are not images, and
    the contents of deeper folders are left out. A class without images has an empty list.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ImportError: if Pillow is not installed: it says which files are images.
    """
    folder, images = existing(folder), endings()
    is_image = lambda file: file.suffix.lower() in images and not _is_hidden(file.name)
    return {
        entry.name: sorted(f for f in entry.iterdir() if is_image(f) and not f.is_dir())
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not _is_hidden(entry.name) and not entry.name.startswith("__")
    }


def image_files(folder: str | Path) -> list[Path]:
    """All image files below `folder`, at any depth, sorted by path; hidden ones are left out.

    Links to folders are followed. `folder` may also be one file, which is taken for an image
    whatever its ending.

    Raises:
      FileNotFoundError: if it does not exist.
      ValueError: if it has no images.
      ImportError: if Pillow is not installed: it says which files are images.
    """
    if (folder := Path(folder)).is_file():
        return [folder]
    images, everything = endings(), sorted(_files(existing(folder, "folder or image")))
    files = [file for file in everything if file.suffix.lower() in images]
    if not files:
        others = f"; {summary_of(everything, folder)}" if everything else ""
        raise ValueError(f"there are no images in {folder}, nor in deeper folders{others}.")
    return files


def left_out(folder: str | Path, *parts: ClassFiles) -> list[Path]:
    """The files below `folder` that are in none of the parts, sorted by path; no hidden ones."""
    taken = {file for part in parts for files in part.values() for file in files}
    return sorted(file for file in _files(Path(folder)) if file not in taken)


def summary_of(left_out: Sequence[Path], folder: Path) -> str:
    """One line about files that are left out: how many of which ending, and one of them."""
    images = endings()
    place = lambda ending: (
        f"{ending} not directly in a class folder" if ending in images else ending
    )
    kinds = Counter(place(file.suffix.lower()) or "without an ending" for file in left_out)
    counts = listed([f"{number:,} {kind}" for kind, number in kinds.most_common()])
    files = "file" if len(left_out) == 1 else "files"
    return (
        f"{len(left_out):,} {files} left out: {counts}; such as {left_out[0].relative_to(folder)}"
    )


def existing(folder: str | Path, what: str = "folder") -> Path:
    """The folder as a path; raises a FileNotFoundError if it does not exist."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no {what} {folder}.")
    return Path(folder)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "@eaDir"  # where some disk stations keep thumbnails


def _files(folder: Path) -> Iterator[Path]:
    """All files below the folder but hidden ones; links are followed, to each real folder once.

    A link to a folder around this one is not followed, for it may lead to the whole disk.
    """

    def fail(error: OSError) -> None:
        raise error

    seen, places, base = set(), [folder], Path(os.path.realpath(folder))
    leads_out = lambda path: path.is_symlink() and not base.is_relative_to(os.path.realpath(path))
    while places:
        for place, folders, files in os.walk(places.pop(0), onerror=fail):
            real, is_new = os.path.realpath(place), os.path.realpath(place) not in seen
            seen.add(real)
            folders[:] = sorted(name for name in folders if is_new and not _is_hidden(name))
            # Links wait for the real folders, which `os.walk` enters.
            places += filter(leads_out, (Path(place, name) for name in folders))
            yield from (Path(place, name) for name in files if is_new and not _is_hidden(name))
