"""Image files as uint8 arrays, all of one size, read with Pillow."""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np

from reptile_jax._files import open_file
from reptile_jax._values import check_integers

Color: TypeAlias = Literal["rgb", "grey"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_MODES = {"rgb": "RGB", "grey": "L"}
# What Pillow opens and is no still image, or only another program decodes: Ghostscript EPS, Windows
# its metafiles, a plugin the stubs. An IPTC file may contain any of them.
_LEFT_OUT = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"}
_DEPTHS = (8, 10, 12, 14, 16)  # bits of the cameras and scanners whose greys are in 16-bit files
_LARGEST = 4096  # pixels; a mistyped size must not exhaust the memory

# No picture takes more than about 250 MB and 2 s until it is decoded or refused, by what its file
# declares: 4 bytes for a pixel; more where a decoder needs the whole picture several times; and a
# microsecond for a pixel where Pillow decodes in Python.
_MOST_BYTES = 2**26
_MOST_PIXELS = 51_000_000
_MOST_PIXELS_OF = {
    "libtiff": 24_000_000,
    "progressive": 24_000_000,
    "AVIF": 10_000_000,
    "JPEG2000": 10_000_000,
    "WEBP": 10_000_000,
}
_MOST_PIXELS_IN_PYTHON = 1_000_000
# A JPEG file decodes the whole picture for each scan, and joins its EXIF data piece by piece.
_MOST_SEGMENTS = 60
_SEGMENT = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]|\xff\xe1..Exif\0", re.DOTALL)


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
            with open_file(files[index], _MOST_BYTES) as file:
                images[index] = _decoded(file, size, color, resample)
        except Exception as error:  # as in `decode`
            return f"{files[index]}: {_why(error)}"
        return None

    with _bounded(), ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            damaged = [problem for problem in pool.map(read, range(len(files))) if problem]
        finally:  # a signal does not wait for the files that are left
            pool.shutdown(cancel_futures=True)
    if damaged:
        which = "the image" if len(damaged) == 1 else f"{len(damaged):,} of {len(files):,} images:"
        raise ValueError(f"cannot read {which} {listed(damaged, 3, '; ')}")
    return images


def decode(
    file: IO[bytes],
    name: str | Path,
    size: int,
    color: Color,
    resample: Resample,
    *,
    most_pixels: int = _MOST_PIXELS,
) -> np.ndarray:
    """Reads one image, an open file of at most so many pixels, into `[size, size, channels]` uint8.

    `read_images` says how it is converted and scaled.

    Raises:
      ValueError: if it cannot be decoded, with `name`.
      ImportError: if Pillow is not installed.
    """
    _pillow()
    try:
        with _bounded():
            return _decoded(file, size, color, resample, most_pixels)
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
    file: IO[bytes], size: int, color: Color, resample: Resample, most: int = _MOST_PIXELS
) -> np.ndarray:
    """As `decode` inside of `_bounded`, with Pillow's own errors."""
    Image, ImageOps = _pillow()
    _check_segments(file)
    with Image.open(file, formats=_kinds()) as image, _memory.for_pixels(*_pixels(image, most)):
        ImageOps.exif_transpose(image, in_place=True)
        bits = _declared_bits(image)
        if image.mode.startswith("I"):
            image = Image.fromarray(_upper_8_bits(image, bits))
        if image.mode.endswith(("A", "a")) or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != _MODES[color]:  # else it would be copied
            image = image.convert(_MODES[color])
        image = image.resize((size, size), Image.Resampling[resample.upper()])
        return np.asarray(image).reshape(size, size, -1)


_reading = threading.RLock()


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Here Pillow refuses what declares too many pixels: a file, its tiles, a picture inside.

    Its limit and Python's filters of warnings are the process's, so one reader at a time sets
    them. What Pillow warns of is text that it passes over, a line for each.
    """
    Image, _ = _pillow()
    with _reading, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


class _Memory:
    """Lets pictures be decoded at the same time whose memory, together, is that of the largest."""

    def __init__(self) -> None:
        self._free, self._changed = _MOST_PIXELS, threading.Condition()

    @contextlib.contextmanager
    def for_pixels(self, pixels: int, most: int) -> Iterator[None]:
        """Waits until there is room for a picture of which `most` pixels would take all of it."""
        room = _MOST_PIXELS * pixels // most
        with self._changed:
            self._changed.wait_for(lambda: room <= self._free)
            self._free -= room
        try:
            yield
        finally:
            with self._changed:
                self._free += room
                self._changed.notify_all()


_memory = _Memory()


def _pixels(image: Any, most: int) -> tuple[int, int]:
    """The pixels that an opened image declares, and how many there may be, or a ValueError."""
    decoders = {tile[0] for tile in getattr(image, "tile", ())}
    names = decoders | {image.format} | ({"progressive"} & image.info.keys())
    kinds = [_MOST_PIXELS_OF[name] for name in names & _MOST_PIXELS_OF.keys()]
    if decoders & _pillow()[0].DECODERS.keys():
        kinds.append(_MOST_PIXELS_IN_PYTHON)
    most = min([most, *kinds])
    tags = getattr(image, "tag_v2", {})  # 322 and 323: the sides of a TIFF file's tiles
    problem, pixels = None, max(image.width * image.height, tags.get(322, 1) * tags.get(323, 1))
    if pixels > most:
        problem = (
            f"it has {pixels:,} pixels, expected at most {most:,} of its kind: scale it down, or "
            "save it as PNG"
        )
    elif image.mode.startswith("F"):
        problem = "its pixels are floating-point numbers of unknown range"
    if problem:
        raise ValueError(problem)
    return pixels, most


def _check_segments(file: IO[bytes]) -> None:
    """Raises a ValueError for a JPEG file of too many parts."""
    start = file.read(2)
    parts = len(_SEGMENT.findall(file.read())) if start == b"\xff\xd8" else 0
    file.seek(0)
    if parts > _MOST_SEGMENTS:
        raise ValueError(f"it has {parts} scans and EXIF parts, expected at most {_MOST_SEGMENTS}")


def _why(error: Exception) -> str:
    """What is wrong with a file that `_decoded` cannot read."""
    name = type(error).__name__  # Pillow's own texts name an object, or a limit of its own
    if name.startswith("DecompressionBomb"):
        return f"it has more than {_MOST_PIXELS:,} pixels: scale it down"
    unknown = name == "UnidentifiedImageError"
    return "Pillow does not recognise it as an image" if unknown else str(error) or name


def _declared_bits(image: Any) -> int | None:
    """The bits of a grey value that a file declares, if it does."""
    if image.format == "PPM":  # whose white Pillow scales to that of 16 bits
        return 16
    bits = getattr(image, "tag_v2", {}).get(258)  # TIFF's BitsPerSample
    return bits[0] if bits and 8 <= bits[0] < 16 else None  # 16 may be the file's, not the image's


def _upper_8_bits(image: Any, bits: int | None) -> np.ndarray:
    """The upper 8 of the `bits` of greys; `decode` adds the file's name to the error."""
    low, high = image.getextrema() if image.mode == "I" else (0, 0)
    if low < 0 or high >= 2**16:
        raise ValueError("its greys need more than 16 bits")
    grey = np.asarray(image)
    bits = bits or next(depth for depth in _DEPTHS if grey.max() < 2**depth)
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
