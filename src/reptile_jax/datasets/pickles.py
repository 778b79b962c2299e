"""Reads pickles of arrays and plain containers, without trusting them.

A pickle is a program. Here it can only call the constructors of plain containers and the classes
below, and `pickle_bounds` bounds what it takes. NumPy's own are excluded: `ndarray.__setstate__`
trusts the flags of a pickled dtype, so a crafted dtype makes it read bytes as pointers to objects.
"""

import io
import mmap
import pickle
import re
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reptile_jax._files import open_file
from reptile_jax.datasets.pickle_bounds import bounded

_LARGEST = 2**33  # bytes; mini-ImageNet has 0.8 GB


def load_arrays(path: Path) -> Any:
    """Loads containers, numbers and arrays from a pickle of NumPy 1 or 2 and Python 2 or 3.

    Arrays of numbers or text in dicts, nested or not, become read-only NumPy arrays. Large ones are
    parts of the file until they are copied: do not change it.

    Raises:
      OSError: if the file cannot be opened.
      ValueError: for a damaged file, and for one with anything else in it.
    """
    with open_file(path, _LARGEST) as file:
        try:
            program, views = bounded(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            data = map(_Data, views)
            unpickler = _DataUnpickler(io.BytesIO(program), encoding="latin1", buffers=data)
            return _with_arrays(unpickler.load(), {})
        except Exception as error:  # a damaged pickle raises almost anything
            damaged = isinstance(error, LookupError | struct.error)
            why = "it is damaged" if damaged else str(error) or type(error).__name__
            raise ValueError(f"cannot read {path}: {why}") from error


class _Data:
    """Large data in a pickle, which nothing but an array can be made of."""

    def __init__(self, view: memoryview):
        self.view = view


class _Dtype:
    """`numpy.dtype` in a pickle."""

    def __init__(self, code: str, *_: Any):
        # Longer numbers than of 64 bits can be made to collide in a dict.
        if not re.fullmatch(r"[biuf][1248]|[SU]\d{1,9}", code):
            raise pickle.UnpicklingError(f"it has an array of {code}, not of numbers or text")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """`numpy.ndarray` in a pickle."""

    def __init__(self, *_: Any):
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_bytes(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _from_bytes(data: bytes | str | _Data, dtype: _Dtype) -> np.ndarray:
    if isinstance(data, _Data):
        return np.frombuffer(data.view, dtype.dtype)
    # Python 2 wrote bytes as text.
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype)


def _from_buffer(data: bytes | _Data, dtype: _Dtype, shape: tuple, order: str, *_: Any) -> _Array:
    made = _Array()
    made.array = _from_bytes(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return made


def _with_arrays(content: Any, made: dict[int, dict]) -> Any:
    """`content` with the arrays themselves; `made` has the new dicts by the old ones' identity."""
    if isinstance(content, dict):
        if id(content) not in made:  # else one that occurs twice would be copied twice
            new = made[id(content)] = {}
            new.update((name, _with_arrays(value, made)) for name, value in content.items())
        return made[id(content)]
    if isinstance(content, _Data):
        return content.view
    return content.array if isinstance(content, _Array) else content


class _DataUnpickler(pickle.Unpickler):
    """Refuses everything but data before it can run."""

    _ADMITTED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("multiarray", "_reconstruct"): _Array,
        ("multiarray", "scalar"): lambda dtype, data: _from_bytes(data, dtype)[0],
        ("numeric", "_frombuffer"): _from_buffer,
        # How Python 3 writes bytes for Python 2; only that encoding is available.
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
        ("builtins", "list"): list,
        ("builtins", "dict"): dict,
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
    }

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 1 wrote `numpy.core`, NumPy 2 writes `numpy._core`; Python 2 wrote `__builtin__`.
        place = re.sub(r"^numpy\._?core\.", "", module).replace("__builtin__", "builtins")
        if (place, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not image data; such a file can execute "
                "any code, so it is refused"
            )
        admitted = self._ADMITTED[place, name]
        return lambda *arguments: admitted(*arguments)  # a new one, as BUILD changes a function
