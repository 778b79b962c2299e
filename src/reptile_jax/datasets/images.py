"""Image files as uint8 arrays, all of one size, read with Pillow."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np

from reptile_jax._checks import check_integers

Color: TypeAlias = Literal["rgb", "grey"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_MODES = {"rgb": "RGB", "grey": "L"}
_LARGEST = 4096  # pixels; a mistyped size must not exhaust the memory


def read_images(
    paths: Iterable[str | Path],
    *,
    size: int,
    color: Color = "rgb",
    resample: Resample = "bilinear",
) -> np.ndarray:
    """Reads image files into one array `[images, size, size, channels]`, uint8, in the given order.

    Images are turned upright by their EXIF orientation, transparency becomes white, 16-bit greys
    keep their upper 8 bits, and the whole image is scaled to the square, whatever its shape. Of an
    animation the first picture is read.

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

    `read_images` says how it is converted and scaled.

    Raises:
      ValueError: if it cannot be decoded, with `name`.
      ImportError: if Pillow is not installed.
    """
    Image, ImageOps = _pillow()
    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):
                image = Image.fromarray(_upper_8_bits(np.asarray(image)))
            if image.mode.endswith(("A", "a")) or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert(_MODES[color])
            image = image.resize((size, size), Image.Resampling[resample.upper()])
            return np.asarray(image).reshape(size, size, -1)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, ...
        unknown = type(error).__name__ == "UnidentifiedImageError"  # its text names an object
        why = "Pillow does not recognise it as an image" if unknown else error
        raise ValueError(f"cannot read the image {name}: {why}") from error


def _upper_8_bits(grey: np.ndarray) -> np.ndarray:
    """The upper half of 16-bit greys; `decode` adds the file's name to the error."""
    problem = None
    if grey.dtype.kind == "f":
        problem = "its pixels are floating-point numbers of unknown range"
    elif grey.min() < 0 or grey.max() >= 2**16:
        problem = "its greys need more than 16 bits"
    if problem:
        raise ValueError(problem)
    return (grey >> 8).astype(np.uint8)


def check_options(size: int, color: str = "grey", resample: str = "nearest") -> None:
    """Raises a ValueError for options that `decode` does not support."""
    check_integers(size=size)
    problem = None
    if size > _LARGEST:
        problem = f"size is the side of the images in pixels, at most {_LARGEST}, got {size}."
    elif color not in get_args(Color):
        problem = f"color must be one of {list(get_args(Color))}, got {color!r}."
    elif resample not in get_args(Resample):
        problem = f"resample must be one of {list(get_args(Resample))}, got {resample!r}."
    if problem:
        raise ValueError(problem)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            'reading image files needs Pillow: pip install "reptile-jax[cli]"'
        ) from error
    return Image, ImageOps
