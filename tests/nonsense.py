"""Nonsense as arguments and damage as files: the answer is a result or an error of the library."""

import contextlib
import os
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

import reptile_jax as rj

LIBRARY = os.path.dirname(rj.__file__)
KEY = jax.random.key(0)
NONSENSE = st.sampled_from(
    [
        *(0, 1, -1, 2, 2.5, np.nan, np.inf, None, "3", True, 10**12, 2**31, np.int64(2)),
        *(np.zeros(2), jnp.zeros(3), KEY, [1], (1, 2), {}, "SAME", len),
    ]
)
fuzz = settings(derandomize=True, deadline=None, max_examples=40, database=None)


@contextlib.contextmanager
def answered():
    """Passes on a result, or an error raised by a statement of the library.

    None comes from inside JAX, NumPy, Pillow, zipfile, csv or pickle.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = last.line.startswith("raise") or isinstance(error, OSError)
        if not raised or not last.filename.startswith(LIBRARY) or not str(error):
            pytest.fail(f"{last}: {error}")


def mostly(**defaults):
    """Keyword arguments with nonsense in at most two of them."""
    return st.dictionaries(st.sampled_from(sorted(defaults)), NONSENSE, max_size=2).map(
        lambda nonsense: {**defaults, **nonsense}
    )


@st.composite
def damaged(draw, contents):
    """One of `contents`, cut, with bytes changed, or left as it is."""
    data = bytearray(draw(st.sampled_from(contents)))
    how = draw(st.sampled_from(["cut", "change", "change", "insert", "leave"]))
    place = st.integers(0, len(data) - 1)
    if how == "cut":
        del data[draw(place) :]
    elif how == "insert":
        at = draw(place)
        data[at:at] = draw(st.binary(max_size=20))
    elif how == "change":
        for at in draw(st.lists(place, min_size=1, max_size=6)):
            data[at] = draw(st.integers(0, 255))
    return bytes(data)
