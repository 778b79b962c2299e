"""The page's questions: JSON from anybody, of which nothing is believed."""

import base64
import binascii
import json
from typing import Any, NamedTuple

import numpy as np

from reptile_jax.app.demo import engine


class BadQuestion(ValueError):
    """A question that is none; the text says why."""


class AboutSymbols(NamedTuple):
    """A question to `engine.Symbols.answer`."""

    start: str
    support: np.ndarray  # [ways, size, size] uint8
    queries: np.ndarray  # [queries, size, size] uint8
    transductive: bool


class AboutWaves(NamedTuple):
    """A question to `engine.Waves.answer`."""

    start: str
    x: list[float]  # [points]
    y: list[float]


def largest(symbols: engine.Symbols) -> int:
    """Bytes of the longest question: as many images as there can be, in base64, and the rest."""
    images = symbols.ways[1] + engine.QUERIES
    return images * (4 * symbols.size**2 // 3 + 10) + 10_000


def about_symbols(body: bytes, symbols: engine.Symbols) -> AboutSymbols:
    """Reads a question about symbols.

    Raises:
      BadQuestion: for what is none.
    """
    fields = _fields(body, {"start", "support", "queries", "transductive"})
    least, most = symbols.ways
    if not isinstance(fields["transductive"], bool):
        raise BadQuestion("transductive is true or false.")
    return AboutSymbols(
        _start(fields, symbols.starts),
        _images(fields, "support", least, most, symbols.size),
        _images(fields, "queries", 1, engine.QUERIES, symbols.size),
        fields["transductive"],
    )


def about_waves(body: bytes, waves: engine.Waves) -> AboutWaves:
    """Reads a question about points.

    Raises:
      BadQuestion: for what is none.
    """
    fields = _fields(body, {"start", "x", "y"})
    least, most = engine.POINTS
    are_points = all(
        isinstance(values, list)
        and least <= len(values) <= most
        and all(type(value) in (int, float) and abs(value) <= 100 for value in values)
        for values in (fields["x"], fields["y"])
    )
    if not are_points or len(fields["x"]) != len(fields["y"]):
        raise BadQuestion(f"x and y are {least} to {most} numbers each, from -100 to 100.")
    return AboutWaves(_start(fields, waves.starts), fields["x"], fields["y"])


def _fields(body: bytes, names: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != names:
        raise BadQuestion(f"a question is JSON with {', '.join(sorted(names))}.")
    return fields


def _start(fields: dict[str, Any], starts: tuple[str, ...]) -> str:
    if fields["start"] not in starts:
        raise BadQuestion(f"start is one of {', '.join(starts)}.")
    return fields["start"]


def _images(fields: dict[str, Any], name: str, least: int, most: int, size: int) -> np.ndarray:
    """Greys `[images, size, size]` of images in base64, row by row."""
    given = fields[name]
    problem = BadQuestion(f"{name} is {least} to {most} images of {size} x {size} bytes in base64.")
    if not isinstance(given, list) or not least <= len(given) <= most:
        raise problem
    try:
        images = [base64.b64decode(image, validate=True) for image in given]
    except (TypeError, ValueError, binascii.Error) as error:
        raise problem from error
    if any(len(image) != size * size for image in images):
        raise problem
    return np.frombuffer(b"".join(images), np.uint8).reshape(-1, size, size)
