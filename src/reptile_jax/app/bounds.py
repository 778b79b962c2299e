"""What values a configuration's field takes, by its type and the bounds in its metadata."""

import math
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import numpy as np

# The bounds of numbers whose fields set none of their own.
_LEAST = {int: 1, float: 0}
_LARGEST = {int: 2**31 - 1, float: 1e9}  # far beyond any rate that learns, below float32's limit


def broken_rule(config: type, name: str, kind: Any, value: Any) -> str | None:
    """What the value of a field of this type has to be, if it is not that."""
    kinds = get_args(kind) if NoneType in get_args(kind) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kind, *others = [kind for kind in kinds if kind is not NoneType] or [Any]
    if others:  # a union takes any value
        return None
    if kind in (int, float):
        bounds = {"least": _LEAST[kind], "largest": _LARGEST[kind], **_bounds(config, name)}
        return _broken_bound(kind, value, bounds["least"], bounds["largest"])
    choices = (False, True) if kind is bool else get_args(kind)
    if kind is not bool and get_origin(kind) is not Literal:
        return None
    is_choice = any(type(value) is type(choice) and value == choice for choice in choices)
    return None if is_choice else f"one of {', '.join(map(repr, choices))}"


def _bounds(config: type, name: str) -> dict[str, Any]:
    """The bounds in a field's metadata; a field that overrides another inherits its bounds."""
    bounds = {}
    for base in reversed(config.__mro__):
        if field := vars(base).get("__dataclass_fields__", {}).get(name):
            bounds.update(field.metadata)
    return bounds


def _broken_bound(kind: type, value: Any, least: float, largest: float) -> str | None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    is_number = is_integer or isinstance(value, float | np.floating)
    if kind is int and not is_integer:
        return "an integer"
    if kind is float and not (is_number and abs(value) < math.inf):
        return "a finite number"
    if least <= value <= largest:
        return None
    if kind is float:
        return f"between {least:g} and {largest:g}"
    return f"at least {least}" if value < least else f"at most {largest}"
