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
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from reptile_jax._files import check_file, open_file
from reptile_jax._values import check_integers
from reptile_jax.datasets.image_folder import ImageSplits, equal_classes, misfits
from reptile_jax.datasets.images import check_options, decode

_CLASSES = {"images_background": 964, "images_evaluation": 659}
_DRAWINGS = 20
# Bytes: the official drawings have about 200, the zip files 9.5 MB, their tables of contents 2 MB.
_LARGEST_FILE, _LARGEST_ZIP, _LARGEST_TABLE = 2**16, 2**26, 2**22
_MOST_PIXELS = 2**16  # the official drawings have 105 x 105


def load_omniglot(
    folder: str | Path,
    *,
    split: Literal["paper", "background"] = "paper",
    num_train: int = 1200,
    rotations: bool = True,
    mirrored: bool = False,
    size: int = 28,
    cache: bool = True,
) -> ImageSplits:
    """Loads Omniglot (Lake et al. 2015): 1,623 characters, 20 drawings of each.

    Images are prepared as in the paper's released code: the 105 x 105 originals are scaled by
    nearest neighbour and not inverted, so `image / 255` is 1 for the background and 0 for the ink.
    Drawings are in the order of their file names. Classes are named "Alphabet/character01"; the
    turned ones follow the upright one, with "+90", "+180" or "+270" after its name. The mirrored
    ones follow them all, in the same order, with " mirrored" after their names.

    The decoded drawings are cached, one bit per pixel, in `$REPTILE_JAX_CACHE`, else in
    `reptile_jax` under `$XDG_CACHE_HOME` or `~/.cache`; without write access there is no cache.
    The cache's key is the path, size and modification time of the zip file, or of the folders down
    to the characters', so it does not notice an image file overwritten in place.

    Args:
      folder: contains the official `images_background.zip` and `images_evaluation.zip`, or folders
        of these names with their contents (alphabet/characterNN/XXXX_YY.png). If both are there,
        the zip is read.
      split: "paper" merges both sets, sorts alphabets and characters, shuffles the characters with
        Python's generator seeded with 0 and trains on the first `num_train` of them. "background"
        trains on the 964 characters of the background set and tests on the other 659, so that
        test alphabets are new as well.
      num_train: training characters of the "paper" split; the paper's 1,200 leave 423 for testing.
      rotations: adds each training class turned by 90, 180 and 270 degrees counter-clockwise, as
        separate classes (4,800 with the paper's split). Test classes are never turned.
      mirrored: adds each of these mirrored left to right, twice as many classes. Not in the paper.
      size: side of the images in pixels.
      cache: read and write the cache.

    Returns:
      Images `[drawings, size, size, 1]`, 0 for ink and 255 for the background.

    Raises:
      FileNotFoundError: if either set is missing, with the names that were tried.
      ValueError: for bad arguments, a damaged file, or an incomplete set or class.
      ImportError: if Pillow is needed (nothing is cached yet) and not installed.
    """
    folder = Path(folder)
    check_options(size)
    _check_split(split, num_train)
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
    if mirrored:
        train = np.concatenate([train, train[..., ::-1, :]])
        train_names = [*train_names, *(name + " mirrored" for name in train_names)]
    return ImageSplits(
        equal_classes(train), equal_classes(test), tuple(train_names), tuple(test_names)
    )


def _check_split(split: str, num_train: int) -> None:
    check_integers(0, num_train=num_train)
    characters, problem = sum(_CLASSES.values()), None
    if split not in ("paper", "background"):
        problem = f'split must be "paper" or "background", got {split!r}.'
    elif split == "paper" and not 0 < num_train < characters:
        problem = (
            f"num_train must leave characters to train and to test on: between 1 and "
            f"{characters - 1}, got {num_train}."
        )
    if problem:
        raise ValueError(problem)


def _paper_split(names: Iterable[str], num_train: int) -> tuple[list[str], list[str]]:
    """The split of the released code: one seeded shuffle of the sorted characters."""
    # By alphabet, then character: "/" sorts after "(", so the joined names sort differently.
    names = sorted(names, key=lambda name: name.split("/"))
    random.Random(0).shuffle(names)
    return names[:num_train], names[num_train:]


def _omniglot_sources(folder: Path) -> list[Path]:
    """The zip file or the folder of each set, background first."""
    found = {}
    for name in _CLASSES:
        for path in (folder / name, folder / f"{name}.zip"):  # the zip if both are there
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
            read = partial(_file, source.parent)
        else:
            with _reported_as_damage(source):
                check_file(source, _LARGEST_ZIP)
                pieces = stack.enter_context(_Pieces(source))
                archive = stack.enter_context(zipfile.ZipFile(pieces))
            members, read = archive.namelist(), partial(_member, archive)
        classes = _omniglot_classes(source, members)
        bits = []
        for member in itertools.chain(*classes.values()):
            with _reported_as_damage(source, f" at {member}"):
                data = read(member)
            name = f"{member} of {source}"
            # One thread: on files this small Pillow mostly runs Python code, which threads slow.
            drawing = decode(
                io.BytesIO(data), name, size, "grey", "nearest", most_pixels=_MOST_PIXELS
            )
            bits.append(drawing > 127)
    return list(classes), np.packbits(np.stack(bits))


@contextlib.contextmanager
def _reported_as_damage(source: Path, place: str = "") -> Iterator[None]:
    """Turns any error, as zipfile raises many kinds, into a ValueError that names the file."""
    try:
        yield
    except (
        Exception
    ) as error:  # BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ...
        raise ValueError(f"{source} is damaged{place}, fetch it again: {error}") from error


class _Pieces(io.FileIO):
    """A file that is read in pieces, so that no more of a zip file is in memory than belongs there.

    zipfile reads its table of contents at once, and makes a hundred times the memory of it.
    """

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(_LARGEST_TABLE + 1 if size is None or size < 0 else size)
        if len(data) > _LARGEST_TABLE:
            raise ValueError(f"its table of contents has more than {_LARGEST_TABLE:,} bytes")
        return data


def _file(folder: Path, name: str) -> bytes:
    with open_file(folder / name, _LARGEST_FILE) as file:
        return file.read()


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's contents: what is read counts, for a member may claim to be smaller than it is."""
    problem, data, info = None, b"", archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "it is neither stored nor deflated"  # zipfile unpacks others without a bound
    else:
        with archive.open(info) as member:
            data = member.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            problem = f"it is larger than {_LARGEST_FILE} bytes"
    if problem:
        raise ValueError(problem)
    return data


def _omniglot_classes(source: Path, members: Iterable[str]) -> dict[str, list[str]]:
    """Class name → its 20 members, both sorted; checks the number of classes and of drawings."""
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
    expected, problem = _CLASSES[source.stem], None
    if len(classes) != expected:
        problem = (
            f"{source} has {len(classes)} characters (top folder/alphabet/characterNN), but the "
            f"official set has {expected}: it is incomplete or something else."
        )
    elif wrong := misfits(classes, lambda number: number == _DRAWINGS):
        problem = (
            f"every Omniglot character has {_DRAWINGS} drawings, but in {source} these have other "
            f"numbers: {wrong}."
        )
    if problem:
        raise ValueError(problem)
    return dict(classes)


def _cache_file(source: Path, size: int) -> Path | None:
    """The cache file of this source and size; None without a folder for it."""
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
    """What `_save_bits` wrote; None if the file does not exist or is damaged."""
    length = -(-classes * _DRAWINGS * size * size // 8)
    try:
        most = length + 2**20  # for the names
        with open_file(path, most) as file, np.load(file, allow_pickle=False) as stored:
            names, bits = stored["names"], stored["bits"]
    except Exception:  # a damaged file raises almost anything; zip members have checksums
        return None
    if names.shape != (classes,) or bits.shape != (length,) or bits.dtype != np.uint8:
        return None
    return names.tolist(), bits


def _save_bits(path: Path, names: list[str], bits: np.ndarray) -> None:
    """Writes the whole file or none; a folder without write access is not an error."""
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
