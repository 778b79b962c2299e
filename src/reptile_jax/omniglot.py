"""Omniglot: 1,623 handwritten characters, as images grouped by class."""

import contextlib
import hashlib
import io
import itertools
import os
import random
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from reptile_jax.datasets import ImageSplits, check_options, decode, equal_classes, misfits
from reptile_jax.tasks import check_integers

_CLASSES = {"images_background": 964, "images_evaluation": 659}
_DRAWINGS = 20
_LARGEST_FILE = 2**20  # bytes; the official drawings have some 200


def load_omniglot(
    folder: str | Path,
    *,
    split: Literal["paper", "background"] = "paper",
    num_train: int = 1200,
    rotations: bool = True,
    size: int = 28,
    cache: bool = True,
) -> ImageSplits:
    """Omniglot (Lake et al. 2015): 1,623 characters, 20 drawings of each, 0 for ink, 255 around it.

    Prepared as in the paper's released code: nearest-neighbour scaling of the 105 x 105 originals,
    not inverted, so that `image / 255` is 1 for the background and 0 for the ink. Drawings are in
    the order of their file names. Classes are named "Alphabet/character01", and "+90", "+180",
    "+270" is appended for the turned ones, which follow the upright one.

    The decoded drawings are cached, a bit per pixel, in `$REPTILE_JAX_CACHE`, else in
    `reptile_jax` under `$XDG_CACHE_HOME` or `~/.cache`; without write access there is no cache.
    A cache entry belongs to the path, size and modification time of the zip file, or of the folders
    down to the characters': an image file overwritten in place goes unnoticed.

    Args:
      folder: holds the official `images_background.zip` and `images_evaluation.zip`, or folders of
        these names with their contents (alphabet/characterNN/XXXX_YY.png). A zip is preferred.
      split: "paper" merges both sets, sorts alphabets and characters, shuffles the characters with
        Python's generator seeded with 0 and trains on the first `num_train` of them. "background"
        trains on the 964 characters of the background set and tests on the other 659, so that
        test alphabets are new as well.
      num_train: training characters of the "paper" split; the paper's 1,200 leave 423 for testing.
      rotations: adds each training class turned by 90, 180 and 270 degrees counter-clockwise, as
        classes of their own (4,800 with the paper's split). Test classes are never turned.
      size: side of the images in pixels.
      cache: read and write the cache.

    Raises:
      FileNotFoundError: if either set is missing, with what was looked for.
      ValueError: for bad arguments, a damaged file, or a set or a class that is not complete.
      ImportError: if Pillow is needed (nothing is cached yet) and not installed.
    """
    folder = Path(folder)
    check_options(size)
    check_integers(0, num_train=num_train)
    if split not in ("paper", "background"):
        raise ValueError(f'split must be "paper" or "background", got {split!r}.')
    (train_names, train), (test_names, test) = (
        _omniglot_set(source, size, cache) for source in _omniglot_sources(folder)
    )
    if split == "paper":
        drawings = dict(zip(train_names + test_names, np.concatenate([train, test]), strict=True))
        train_names, test_names = _paper_split(drawings, num_train)
        train, test = (
            np.stack([drawings[name] for name in part]) for part in (train_names, test_names)
        )
    if rotations:
        turned = [np.rot90(train, quarters, axes=(2, 3)) for quarters in range(4)]
        train = np.stack(turned, axis=1).reshape(-1, *train.shape[1:])
        turns = ("", "+90", "+180", "+270")
        train_names = [name + turn for name in train_names for turn in turns]
    return ImageSplits(
        equal_classes(train), equal_classes(test), tuple(train_names), tuple(test_names)
    )


def _paper_split(names: Iterable[str], num_train: int) -> tuple[list[str], list[str]]:
    """The split of the released code: one seeded shuffle of the sorted characters."""
    # By alphabet, then character: "/" sorts after "(", so the joined names sort differently.
    names = sorted(names, key=lambda name: name.split("/"))
    if not 0 < num_train < len(names):
        raise ValueError(
            f"num_train must leave characters to train and to test on: between 1 and "
            f"{len(names) - 1}, got {num_train}."
        )
    random.Random(0).shuffle(names)
    return names[:num_train], names[num_train:]


def _omniglot_sources(folder: Path) -> list[Path]:
    """The zip file or the folder of each set, background first."""
    found = {}
    for name in _CLASSES:
        for path in (folder / name, folder / f"{name}.zip"):  # the zip, if both are there
            if path.exists():
                found[name] = path
    missing = [name for name in _CLASSES if name not in found]
    if missing:
        raise FileNotFoundError(
            f"Omniglot is not complete in {folder}: missing {' and '.join(missing)}. Looked for "
            f"{' and '.join(f'{name}.zip or a folder {name}' for name in missing)}; both sets are "
            f"needed. To fetch them: reptile-jax download omniglot --out {folder}"
        )
    return list(found.values())


def _omniglot_set(source: Path, size: int, cache: bool) -> tuple[list[str], np.ndarray]:
    """One set: class names, sorted, and drawings `[classes, 20, size, size, 1]` of 0 and 255."""
    cached = _cache_file(source, size) if cache else None
    stored = _load_bits(cached, _CLASSES[source.stem], size) if cached else None
    if stored is None:
        stored = _decode_omniglot(source, size)
        if cached:
            _save_bits(cached, *stored)
    names, bits = stored
    shape = (len(names), _DRAWINGS, size, size, 1)
    return names, np.unpackbits(bits, count=np.prod(shape)).reshape(shape) * np.uint8(255)


def _decode_omniglot(source: Path, size: int) -> tuple[list[str], np.ndarray]:
    """Class names and packed bits `[ceil(classes * 20 * size * size / 8)]` of one set."""
    with contextlib.ExitStack() as stack:
        if source.is_dir():
            members = [
                path.relative_to(source.parent).as_posix() for path in source.glob("*/*/*.png")
            ]
            read = lambda member: (source.parent / member).read_bytes()
        else:
            try:
                archive = stack.enter_context(zipfile.ZipFile(source))
            except Exception as error:  # BadZipFile, NotImplementedError, OSError, ...
                raise ValueError(f"{source} is damaged, fetch it again: {error}") from error
            members, read = archive.namelist(), partial(_member, archive)
        classes = _omniglot_classes(source, members)
        bits = []
        for member in itertools.chain(*classes.values()):
            try:
                data = read(member)
            except Exception as error:  # zipfile raises BadZipFile, zlib.error, EOFError, ...
                raise ValueError(
                    f"{source} is damaged at {member}, fetch it again: {error}"
                ) from error
            name = f"{member} of {source}"
            # One thread: for files this small Pillow's work is Python's, and threads slow it down.
            bits.append(decode(io.BytesIO(data), name, size, "grey", "nearest") > 127)
    return list(classes), np.packbits(np.stack(bits))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's contents; a small archive is not to unfold into all of the memory."""
    if archive.getinfo(name).file_size > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE} bytes")
    return archive.read(name)


def _omniglot_classes(source: Path, members: Iterable[str]) -> dict[str, list[str]]:
    """Class name → its 20 members, both sorted; checks the numbers of classes and drawings."""
    classes = defaultdict(list)
    for member in sorted(members, key=lambda member: member.split("/")):
        *folders, file = member.split("/")[1:] or [member]
        if (
            len(folders) == 2
            and folders[1].startswith("character")
            and file.endswith(".png")
            and not file.startswith(".")
        ):
            classes["/".join(folders)].append(member)
    expected = _CLASSES[source.stem]
    if len(classes) != expected:
        raise ValueError(
            f"{source} holds {len(classes)} characters (top folder/alphabet/characterNN),"
            f" the official set has {expected}: it is incomplete or something else."
        )
    if wrong := misfits(classes, lambda number: number == _DRAWINGS):
        raise ValueError(
            f"every Omniglot character has {_DRAWINGS} drawings, but in {source} these "
            f"have other numbers: {wrong}."
        )
    return dict(classes)


def _cache_file(source: Path, size: int) -> Path | None:
    """Where the bits of this very source and size belong; None if there is no such place."""
    folders = [*source.glob("*"), *source.glob("*/*")] if source.is_dir() else []
    facts = [(path, path.stat()) for path in [source.resolve(), *sorted(folders)]]
    identity = repr([(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in facts])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    try:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home folder
        user = None
    root = os.environ.get("REPTILE_JAX_CACHE") or (user and Path(user, "reptile_jax"))
    return Path(root, f"{source.stem}-{size}-{digest}.npz") if root else None


def _load_bits(path: Path, classes: int, size: int) -> tuple[list[str], np.ndarray] | None:
    """What `_save_bits` wrote, or None if there is no such file or it is not whole."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            names, bits = stored["names"], stored["bits"]
    except Exception:  # whatever a damaged file leads to; zip members carry checksums
        return None
    length = -(-classes * _DRAWINGS * size * size // 8)
    if names.shape != (classes,) or bits.shape != (length,) or bits.dtype != np.uint8:
        return None
    return names.tolist(), bits


def _save_bits(path: Path, names: list[str], bits: np.ndarray) -> None:
    """Writes the file whole or not at all; a folder that cannot be written is not an error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with open(handle, "wb") as file:
                np.savez(file, names=np.array(names), bits=bits)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
