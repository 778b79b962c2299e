"""Image files as uint8 arrays, all of one size, read with Pillow."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np

from reptile_jax._checks import check_integers

Color: TypeAlias = Literal["rgb", "grey"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_MODES = {"rgb": "RGB", "grey": "L"}
# What Pillow opens and is no still image, or only another program decodes: Ghostscript EPS, Windows
# its metafiles, a plugin the stubs.
_LEFT_OUT = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}
_DEPTHS = (8, 10, 12, 14, 16)  # bits of the cameras and scanners whose greys are in 16-bit files
_LARGEST = 4096  # pixels; a mistyped size must not exhaust the memory


def read_images(
    paths: Iterable[str | Path],
    *,
    size: int,
    color: Color = "rgb",
    resample: Resample = "bilinear",
) -> np.ndarray:
    """Reads image files into one array `[images, size, size, channels]`, uint8, in the given order.

    Images are turned upright by their EXIF orientation, transparency becomes white, and the whole
    image is scaled to the square, whatever its shape. Of an animation the first picture is read.

    Greys of more than 8 bits keep the upper 8 of the bits in use: of those that the file declares
    (PGM, 12-bit TIFF), else of the fewest of 8, 10, 12, 14 and 16 bits that have room
    for the file's largest value. So a 12-bit picture in a 16-bit file keeps its contrast, and a
    16-bit picture with nothing brighter than a quarter of white becomes brighter. Colours of 16
    bits keep the upper 8.

    Args:
      paths: at least one image file, in any format that Pillow itself decodes.
      size: side of the square in pixels.
      color: "rgb" (3 channels) or "grey" (1 channel).
      resample: Pillow's filter; all but "nearest" are anti-aliased.

    Raises:
      ValueError: for bad arguments, or for files that cannot be decoded: all are tried, and the
        first few are named.
      ImportError: if Pillow is not installed.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise ValueError("read_images needs at least one file, got none.")
    check_options(size, color, resample)
    _kinds()  # loads Pillow and its plugins before the threads need them
    images = np.empty((len(files), size, size, len(_MODES[color])), np.uint8)

    def read(index: int) -> str | None:
        try:
            images[index] = _decoded(files[index], size, color, resample)
        except Exception as error:  # as in `decode`
            return f"{files[index]}: {_why(error)}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        damaged = [problem for problem in pool.map(read, range(len(files))) if problem]
    if damaged:
        which = "the image" if len(damaged) == 1 else f"{len(damaged):,} of {len(files):,} images:"
        raise ValueError(f"cannot read {which} {listed(damaged, 3, '; ')}")
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
    _pillow()
    try:
        return _decoded(file, size, color, resample)
    except Exception as error:  # damaged files raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"cannot read the image {name}: {_why(error)}") from error


def endings() -> set[str]:
    """The endings of the files that `read_images` reads, such as ".png", in lower case.

    Raises:
      ImportError: if Pillow is not installed.
    """
    kinds = {*_kinds(), "MPO"}  # which Pillow opens as a JPEG
    known = _pillow()[0].registered_extensions()
    return {ending for ending, kind in known.items() if kind in kinds}


def listed(items: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first few of the items, and how many more there are, for a message of one line."""
    more = f"{between.rstrip(', ')} and {len(items) - most:,} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def _kinds() -> list[str]:
    """The formats that Pillow itself decodes, the usual ones first."""
    Image, _ = _pillow()
    Image.init()
    return [kind for kind in Image.ID if kind not in _LEFT_OUT]


def _decoded(
    file: str | Path | IO[bytes], size: int, color: Color, resample: Resample
) -> np.ndarray:
    """As `decode`, with Pillow's own errors."""
    Image, ImageOps = _pillow()
    with Image.open(file, formats=_kinds()) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            image = Image.fromarray(_upper_8_bits(np.asarray(image), _declared_bits(opened)))
        if image.mode.endswith(("A", "a")) or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(_MODES[color])
        image = image.resize((size, size), Image.Resampling[resample.upper()])
        return np.asarray(image).reshape(size, size, -1)


def _why(error: Exception) -> str:
    """What is wrong with a file that `_decoded` cannot read."""
    unknown = type(error).__name__ == "UnidentifiedImageError"  # its text names an object
    return "Pillow does not recognise it as an image" if unknown else str(error)


def _declared_bits(image: Any) -> int | None:
    """The bits of a grey value that a file declares, if it does."""
    if image.format == "PPM":  # whose white Pillow scales to that of 16 bits
        return 16
    bits = getattr(image, "tag_v2", {}).get(258)  # TIFF's BitsPerSample
    return bits[0] if bits and 8 <= bits[0] < 16 else None  # 16 may be the file's, not the image's


def _upper_8_bits(grey: np.ndarray, bits: int | None) -> np.ndarray:
    """The upper 8 of the `bits` of greys; `decode` adds the file's name to the error."""
    problem, largest = None, grey.max()
    if grey.dtype.kind == "f":
        problem = "its pixels are floating-point numbers of unknown range"
    elif grey.min() < 0 or largest >= 2**16:
        problem = "its greys need more than 16 bits"
    if problem:
        raise ValueError(problem)
    bits = bits or next(depth for depth in _DEPTHS if largest < 2**depth)
    return (grey >> (bits - 8)).clip(max=255).astype(np.uint8)


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
