"""Files on disk → images grouped by class, and any folder of class folders as a data set.

Every loader, here and in `omniglot` and `mini_imagenet`, returns `ImageSplits`: uint8 images, split
by classes, in host memory. Nothing is normalised here: `image / 255` gives the values in [0, 1]
that the paper trains on (Nichol, Achiam & Schulman 2018, https://arxiv.org/abs/1803.02999, and its
released code).
"""

import numbers
import os
import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from reptile_jax.fewshot import ImageClasses
from reptile_jax.tasks import check_integers

Color: TypeAlias = Literal["rgb", "grey"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ClassItems: TypeAlias = Mapping[str, Any]  # class name → a sequence of images: paths or indices

_MODES = {"rgb": "RGB", "grey": "L"}
_LARGEST = 4096  # pixels; a mistyped size is not to ask for all of the memory
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


class ImageSplits(NamedTuple):
    """A data set split by classes: no class is in two of the splits.

    The names follow the classes of the arrays: `train_names[c]` is class `c` of `train`.
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
    """Any folder of class folders of images: `folder/class name/*.png`, `.jpg` and the like.

    Classes may differ in size. Hidden entries and files that are not images are left out. Images
    are read as in `read_images`, classes are split as in `split_classes`.

    Args:
      folder: holds one folder per class, and each of these its images, in no deeper folders.
      size: side of the images in pixels.
      color: "rgb" (3 channels) or "grey" (1 channel).
      resample: Pillow's filter; all but "nearest" are anti-aliased.
      min_images: how many images a class must have: the shots and the queries of an episode.
      test_fraction: the share of the classes to test on.
      validation_fraction: the share of the classes to validate on; 0 for no validation split.
      seed: of the split.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: for bad arguments; for classes with too few images, all of them named; for an
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
            f"their folders: {few}. Add images, move the folders away, or ask for fewer shots."
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
    """Splits class names into (train, validation, test), a function of the set of names and seed.

    The sorted names are shuffled by `random.Random(seed)`; the last `test_fraction` of them are for
    testing, the `validation_fraction` before those for validation, the others for training. Shares
    are rounded, but a share above 0 is at least one class. Asking for validation classes takes
    them from training and leaves the test classes as they are. Each part is sorted.

    Raises:
      ValueError: for shares out of range, or if no class is left for training.
    """
    names = sorted(set(names))
    check_integers(0, seed=seed)
    for share in (test_fraction, validation_fraction):
        if not isinstance(share, numbers.Real):
            raise TypeError(f"test_fraction and validation_fraction are numbers, got {share!r}.")
    if not 0 < test_fraction < 1 or not 0 <= validation_fraction < 1 - test_fraction:
        raise ValueError(
            "test_fraction must be above 0, validation_fraction at least 0 and both together below "
            f"1, got {test_fraction} and {validation_fraction}."
        )
    num_test = max(1, round(test_fraction * len(names)))
    num_validation = max(int(validation_fraction > 0), round(validation_fraction * len(names)))
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
    what lies in deeper folders are left out. A class without images has an empty list.

    Raises:
      FileNotFoundError: if there is no such folder.
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
      FileNotFoundError: if there is no such folder.
      ValueError: if there is no image in it.
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


def read_images(
    paths: Iterable[str | Path],
    *,
    size: int,
    color: Color = "rgb",
    resample: Resample = "bilinear",
) -> np.ndarray:
    """Reads image files into one array `[images, size, size, channels]`, uint8, in the given order.

    Images are turned upright by their EXIF orientation, transparency is laid on white, 16-bit
    greys keep their upper 8 bits, and the whole image is scaled to the square, whatever its shape.
    Of an animation the first picture is read.

    Args:
      paths: at least one image file, in any format that Pillow reads.
      size: side of the square in pixels.
      color: "rgb" (3 channels) or "grey" (1 channel).
      resample: Pillow's filter; all but "nearest" are anti-aliased.

    Raises:
      ValueError: for bad arguments, or for a file that cannot be decoded, with its name.
      ImportError: if Pillow is not installed.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise ValueError("read_images needs at least one file, got none.")
    check_options(size, color, resample)
    _pillow()
    images = np.empty((len(files), size, size, len(_MODES[color])), np.uint8)

    def read(index: int) -> None:
        images[index] = decode(files[index], files[index], size, color, resample)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(files))):
            pass  # the results are in `images`; iterating raises the first error
    return images


def decode(
    file: str | Path | IO[bytes], name: str | Path, size: int, color: Color, resample: Resample
) -> np.ndarray:
    """Reads one image, a path or an open file, into `[size, size, channels]` uint8.

    What is done to it stands at `read_images`.

    Raises:
      ValueError: if it cannot be decoded, with `name`.
      ImportError: if Pillow is not installed.
    """
    Image, ImageOps = _pillow()
    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                image = Image.fromarray(_upper_8_bits(np.asarray(image)))
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers of no stated range")
            if image.mode.endswith(("A", "a")) or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert(_MODES[color])
            image = image.resize((size, size), Image.Resampling[resample.upper()])
            return np.asarray(image).reshape(size, size, -1)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, ...
        unknown = type(error).__name__ == "UnidentifiedImageError"  # its text names an object
        why = "it is no image that Pillow knows" if unknown else error
        raise ValueError(f"cannot read the image {name}: {why}") from error


def _upper_8_bits(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() >= 2**16:
        raise ValueError("its greys need more than 16 bits")
    return (grey >> 8).astype(np.uint8)


def check_options(size: int, color: str = "grey", resample: str = "nearest") -> None:
    """Raises a ValueError for options that `decode` has no meaning for."""
    check_integers(size=size)
    if size > _LARGEST:
        raise ValueError(f"size is the side of the images in pixels, got {size} > {_LARGEST}.")
    if color not in get_args(Color):
        raise ValueError(f"color must be one of {list(_MODES)}, got {color!r}.")
    if resample not in get_args(Resample):
        raise ValueError(f"resample must be one of {list(get_args(Resample))}, got {resample!r}.")


def grouped(
    classes: ClassItems, gather: Callable[[list], np.ndarray]
) -> tuple[ImageClasses, tuple[str, ...]]:
    """Lays the classes one after another, in their order; the second result is their names.

    `gather` turns the list of all the classes' items into their images `[items, ...]`.
    """
    counts = np.array([len(items) for items in classes.values()], np.int32)
    starts = np.cumsum(counts, dtype=np.int32) - counts
    images = gather([item for items in classes.values() for item in items])
    return ImageClasses(images, starts, counts), tuple(classes)


def equal_classes(images: np.ndarray) -> ImageClasses:
    """Classes of one size: `[classes, examples, height, width, channels]` as `ImageClasses`."""
    classes, examples = images.shape[:2]
    counts = np.full(classes, examples, np.int32)
    starts = np.arange(classes, dtype=np.int32) * examples
    return ImageClasses(images.reshape(-1, *images.shape[2:]), starts, counts)


def misfits(classes: ClassItems, fits: Callable[[int], bool]) -> str:
    """Every class whose number of images does not fit, with that number; "" if there is none."""
    numbers = {name: len(items) for name, items in classes.items()}
    return ", ".join(f"{name} ({number})" for name, number in numbers.items() if not fits(number))


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            'reading image files needs Pillow: pip install "reptile-jax[cli]"'
        ) from error
    return Image, ImageOps
