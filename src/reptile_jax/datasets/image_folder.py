"""Images grouped by class, and any folder of class folders as a data set.

Every loader, here and in `omniglot` and `mini_imagenet`, returns `ImageSplits`: uint8 images, split
by classes, in host memory. Loaders do not normalise: `image / 255` gives the values in [0, 1] that
the paper trains on (Nichol, Achiam & Schulman 2018, https://arxiv.org/abs/1803.02999, and its
released code).
"""

import numbers
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from reptile_jax._checks import check_integers
from reptile_jax._types import ImageClasses
from reptile_jax.datasets.images import Color, Resample, check_options, read_images

ClassItems: TypeAlias = Mapping[str, Any]  # class name → a sequence of images: paths or indices

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


class ImageSplits(NamedTuple):
    """A data set split by classes: no class is in two of the splits.

    `train_names[c]` is the name of class `c` of `train`, and so on.
    """

    train: ImageClasses
    test: ImageClasses
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    validation: ImageClasses | None = None
    validation_names: tuple[str, ...] = ()


def load_image_folder(
    folder: str | Path,
    *,
    size: int,
    color: Color = "rgb",
    resample: Resample = "bilinear",
    min_images: int = 2,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> ImageSplits:
    """Loads any folder of class folders: `folder/class name/*.png`, `.jpg` and the like.

    Classes may differ in size. Hidden entries and files that are not images are left out. Images
    are read as in `read_images`, classes are split as in `split_classes`.

    Args:
      folder: has one folder per class, with the images directly in it.
      size: side of the images in pixels.
      color: "rgb" (3 channels) or "grey" (1 channel).
      resample: Pillow's filter; all but "nearest" are anti-aliased.
      min_images: how many images a class must have: the shots and the queries of an episode.
      test_fraction: the share of the classes to test on.
      validation_fraction: the share of the classes to validate on; 0 for no validation split.
      seed: decides which classes are in which split.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: for bad arguments; for classes with too few images, with their names; for an
        image that cannot be decoded, with its name; for too few classes to split.
      ImportError: if Pillow is not installed.
    """
    folder = Path(folder)
    check_options(size, color, resample)
    check_integers(min_images=min_images)
    classes = class_folders(folder)
    if few := misfits(classes, lambda number: number >= min_images):
        raise ValueError(
            f"these classes in {folder} have fewer than min_images={min_images} images directly in "
            f"their folders: {few}. Add images, move the folders away, or use fewer shots."
        )
    train, validation, test = split_classes(
        classes, test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed
    )
    read = lambda paths: read_images(paths, size=size, color=color, resample=resample)
    load = lambda part: grouped({name: classes[name] for name in part}, read)
    (train, train_names), (test, test_names) = load(train), load(test)
    splits = ImageSplits(train, test, train_names, test_names)
    if not validation:
        return splits
    validation, validation_names = load(validation)
    return splits._replace(validation=validation, validation_names=validation_names)


def split_classes(
    names: Iterable[str],
    *,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> tuple[list[str], list[str], list[str]]:
    """Splits class names into (train, validation, test), the same for the same names and seed.

    `random.Random(seed)` shuffles the sorted names; the last `test_fraction` of them are for
    testing, the `validation_fraction` before those for validation, the others for training. Shares
    are rounded, but a share above 0 is at least one class. Validation classes are taken from the
    training classes; the test classes stay the same. Each part is sorted.

    Raises:
      ValueError: for shares out of range, or if no class is left for training.
    """
    names = sorted(set(names))
    check_integers(0, seed=seed)
    shares = test_fraction, validation_fraction
    if not all(isinstance(share, numbers.Real) for share in shares) or not (
        0 < test_fraction < 1 and 0 <= validation_fraction < 1 - test_fraction
    ):
        raise ValueError(
            "test_fraction must be above 0, validation_fraction at least 0 and their sum below 1, "
            f"got {test_fraction!r} and {validation_fraction!r}."
        )
    num_test, num_validation = (max(int(share > 0), round(share * len(names))) for share in shares)
    num_train = len(names) - num_validation - num_test
    if num_train < 1:
        raise ValueError(
            f"{len(names)} classes are too few to split: {num_test} for testing and "
            f"{num_validation} for validation leave none for training."
        )
    random.Random(seed).shuffle(names)
    validation = names[num_train : num_train + num_validation]
    return sorted(names[:num_train]), sorted(validation), sorted(names[-num_test:])


def class_folders(folder: str | Path) -> dict[str, list[Path]]:
    """The class folders in `folder`: class name → its image files, both sorted by name.

    Hidden entries, folders whose name starts with two underscores, files that are not images, and
    the contents of deeper folders are left out. A class without images has an empty list.

    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    folder = _existing(folder)
    return {
        entry.name: sorted(
            file for file in entry.iterdir() if _is_image(file) and not file.is_dir()
        )
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith((".", "__"))
    }


def image_files(folder: str | Path) -> list[Path]:
    """All image files below `folder`, at any depth, sorted by path; hidden ones are left out.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if it has no images.
    """
    folder = _existing(folder)
    files = sorted(
        file
        for file in folder.rglob("*")
        if _is_image(file)
        and not file.is_dir()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise ValueError(
            f"there are no images in {folder}: looked for {', '.join(sorted(_SUFFIXES))}, in "
            "deeper folders too."
        )
    return files


def _existing(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    return Path(folder)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def grouped(
    classes: ClassItems, gather: Callable[[list], np.ndarray]
) -> tuple[ImageClasses, tuple[str, ...]]:
    """Puts the images of all classes into one array, class after class; also returns the names.

    `gather` turns the list of the classes' items into their images `[items, ...]`.
    """
    counts = np.array([len(items) for items in classes.values()], np.int32)
    starts = np.cumsum(counts, dtype=np.int32) - counts
    images = gather([item for items in classes.values() for item in items])
    return ImageClasses(images, starts, counts), tuple(classes)


def equal_classes(images: np.ndarray) -> ImageClasses:
    """Makes `ImageClasses` of equally large ones `[classes, examples, height, width, channels]`."""
    classes, examples = images.shape[:2]
    counts = np.full(classes, examples, np.int32)
    starts = np.arange(classes, dtype=np.int32) * examples
    return ImageClasses(images.reshape(-1, *images.shape[2:]), starts, counts)


def misfits(classes: ClassItems, fits: Callable[[int], bool]) -> str:
    """The classes whose number of images does not fit, with that number; "" if all fit."""
    numbers = {name: len(items) for name, items in classes.items()}
    return ", ".join(f"{name} ({number})" for name, number in numbers.items() if not fits(number))
