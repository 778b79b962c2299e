"""Images grouped by class, and any folder of class folders as a data set.

Every loader, here and in `omniglot` and `mini_imagenet`, returns `ImageSplits`: uint8 images, split
by classes, in host memory. Loaders do not normalise: `image / 255` gives the values in [0, 1] that
the paper trains on (Nichol, Achiam & Schulman 2018, https://arxiv.org/abs/1803.02999, and its
released code).
"""

import numbers
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from reptile_jax._types import ImageClasses
from reptile_jax._values import check_integers
from reptile_jax.datasets.folders import (
    ClassFiles,
    class_folders,
    existing,
    left_out,
    summary_of,
)
from reptile_jax.datasets.images import (
    Color,
    Resample,
    check_options,
    listed,
    read_images,
)

ClassItems: TypeAlias = Mapping[str, Any]  # class name → a sequence of images: paths or indices

_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_LAYOUT = (
    "each class has a folder with its images directly in it, FOLDER/class/image.png, or "
    "FOLDER/train/class/image.png beside FOLDER/test/class/image.png"
)


class ImageSplits(NamedTuple):
    """A data set split by classes: no class is in two of the splits.

    `train_names[c]` is the name of class `c` of `train`, and so on. `left_out` are the files that
    were found and not read, of loaders that look for images.
    """

    train: ImageClasses
    test: ImageClasses
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    validation: ImageClasses | None = None
    validation_names: tuple[str, ...] = ()
    left_out: tuple[Path, ...] = ()


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

    Classes may differ in size. Images are read as in `read_images`. Classes are split as in
    `split_classes`, unless the folder is split already: into `train/class name/*.png`, `test/...`
    and, if it is there, `validation/...` or `val/...`. Hidden entries are left out; so are files
    that are not images or not directly in a class's folder, which the result's `left_out` lists.

    Args:
      folder: has one folder per class, with the images directly in it; or the splits.
      size: side of the images in pixels.
      color: "rgb" (3 channels) or "grey" (1 channel).
      resample: Pillow's filter; all but "nearest" are anti-aliased.
      min_images: how many images a class must have: the shots and the queries of an episode.
      test_fraction: the share of the classes to test on, of a folder that is not split.
      validation_fraction: the share of them to validate on; 0 for no validation split.
      seed: decides which classes are in which split.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: for bad arguments, images in other places, classes in two splits, classes with
        too few images, images that cannot be decoded, and too few classes to split; the first few
        are named.
      ImportError: if Pillow is not installed.
    """
    folder = Path(folder)
    check_options(size, color, resample)
    check_integers(min_images=min_images)
    if given := own_splits(folder):
        check_classes(folder, _disjoint(folder, given), min_images)
        parts = [given.get(split, {}) for split in ("train", "validation", "test")]
    else:
        classes = class_folders(folder)
        check_classes(folder, classes, min_images)
        names = split_classes(
            classes, test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed
        )
        parts = [{name: classes[name] for name in part} for part in names]
    train, validation, test = read_classes(*parts, size=size, color=color, resample=resample)
    splits = ImageSplits(train[0], test[0], train[1], test[1])
    splits = splits._replace(left_out=tuple(left_out(folder, *parts)))
    if not validation[1]:
        return splits
    return splits._replace(validation=validation[0], validation_names=validation[1])


def own_splits(folder: str | Path) -> dict[str, dict[str, list[Path]]]:
    """The class folders of a folder that is split: "train", "test" and perhaps "validation".

    Empty for a folder that is not split: one without class folders of images in train/ and test/.

    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    folder, found = existing(folder), {}
    for name, split in _SPLITS.items():
        classes = class_folders(folder / name) if (folder / name).is_dir() else {}
        if any(classes.values()):
            found.setdefault(split, classes)
    return found if {"train", "test"} <= found.keys() else {}


def _disjoint(folder: Path, splits: Mapping[str, ClassFiles]) -> ClassFiles:
    """The classes of all splits by "split/class"; raises a ValueError for one that is in two."""
    numbers = Counter(name for classes in splits.values() for name in classes)
    if several := [name for name, number in numbers.items() if number > 1]:
        raise ValueError(
            f"{folder} is split, but these classes are in more than one split: {listed(several)}. "
            "Held-out classes are never trained on: give each class to one split, or the folder "
            "of the class folders, to be split here."
        )
    return {f"{split}/{name}": files for split, c in splits.items() for name, files in c.items()}


def check_classes(folder: Path, classes: ClassFiles, min_images: int) -> None:
    """Raises a ValueError for class folders without images, or with fewer than `min_images`."""
    if classes and not (few := misfits(classes, lambda number: number >= min_images)):
        return
    others = left_out(folder, classes)
    more = f" {summary_of(others, folder)}." if others else ""
    if not any(classes.values()):
        problem = f"there are no images in class folders of {folder}: {_LAYOUT}.{more}"
    else:
        problem = (
            f"these classes in {folder} have fewer than min_images={min_images} images directly in "
            f"their folders: {few}. Add images, move the folders away, or use fewer shots "
            f"(--train-shots, or --shots and --query-shots).{more}"
        )
    raise ValueError(problem)


def read_classes(
    *parts: ClassFiles, size: int, color: Color, resample: Resample
) -> list[tuple[ImageClasses, tuple[str, ...]]]:
    """Reads the images of some splits, at once so that all that are damaged are named together."""
    files = [file for part in parts for images in part.values() for file in images]
    images, loaded = read_images(files, size=size, color=color, resample=resample), []
    for part in parts:
        classes, names = grouped(part, lambda items, rest=images: rest[: len(items)])
        loaded.append((classes, names))
        images = images[len(classes.images) :]
    return loaded


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
            f"{num_validation} for validation leave none for training. Give more classes, or a "
            "smaller test_fraction (--test-fraction)."
        )
    random.Random(seed).shuffle(names)
    validation = names[num_train : num_train + num_validation]
    return sorted(names[:num_train]), sorted(validation), sorted(names[-num_test:])


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
    """The first classes whose number of images does not fit, with that number; "" if all fit."""
    numbers = {name: len(items) for name, items in classes.items()}
    return listed([f"{name} ({number})" for name, number in numbers.items() if not fits(number)])
