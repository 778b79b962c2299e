"""What the page asks for: a model adapted to drawings or points, with the answer of every step."""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reptile_jax.app.config import precise
from reptile_jax.deploy import AdaptableModel, Trajectory
from reptile_jax.deploy.adaptable import resized

STARTS = ("learned", "joint training", "random")  # initialisations; what is left out is not offered
WAYS = (3, 20)
POINTS = (1, 20)
QUERIES = 5
# An inner step costs as much as six examples besides its own. So an answer takes at most 100 ms on
# two cores, however many symbols (`python -m benchmarks demo`).
_BUDGET, _OF_A_STEP = 570, 6
_MOST_STEPS = 50
_GRID = np.linspace(-5, 5, 101, dtype=np.float32)


class Programs:
    """Lets one thread at a time compile a program; threads with other programs do not wait."""

    def __init__(self):
        self._lock, self._each = threading.Lock(), {}

    def is_compiled(self, shape: Any) -> bool:
        """Whether a program has run with this shape: then nobody waits for it."""
        return self._of(shape)[0].is_set()

    def _of(self, shape: Any) -> tuple[threading.Event, threading.Lock]:
        with self._lock:
            return self._each.setdefault(shape, (threading.Event(), threading.Lock()))

    def run(self, shape: Any, program: Callable[[], Any]) -> Any:
        """Runs a program, which is compiled when it runs for the first time with this shape."""
        is_compiled, compiling = self._of(shape)
        if is_compiled.is_set():
            return program()
        with compiling:
            answer = program()
            is_compiled.set()
        return answer


class Symbols:
    """Classifies drawings by one example of each symbol, from several initialisations.

    Args:
      learned: a model of images, with three classes or more.
      joint: parameters and inner optimiser's state of joint training; None if there are none for
        this network.
    """

    def __init__(self, learned: AdaptableModel, joint: AdaptableModel | None = None):
        self._learned, self._joint = learned, joint
        self.starts = STARTS if joint is not None else ("learned", "random")
        self.size, self._channels = learned.input_shape[0], learned.input_shape[2]
        takes_any = learned.apply_for is not None
        self.ways = WAYS if takes_any else (WAYS[0], min(WAYS[1], learned.ways or 0))
        self._models: dict[int, dict[str, AdaptableModel]] = {}
        self._lock, self.programs = threading.Lock(), Programs()
        self._precision = _precision(learned)

    def steps(self, ways: int) -> int:
        """Inner steps that are taken for a number of symbols."""
        return min(_MOST_STEPS, _BUDGET // (_OF_A_STEP + ways))

    def models(self, ways: int) -> Mapping[str, AdaptableModel]:
        """The models by initialisation, for a number of symbols; they share their programs."""
        with self._lock:
            if ways not in self._models:
                self._models[ways] = self._make(ways)
            return self._models[ways]

    def _make(self, ways: int) -> dict[str, AdaptableModel]:
        learned = dataclasses.replace(self._learned.for_ways(ways), inner_steps=self.steps(ways))
        random = self._random.for_ways(ways)
        starts = {"random": (random.params, random.inner_opt_state)}
        if self._joint is not None:
            # A classifier that is meta-learned keeps its width, whatever the symbols.
            width = self._learned.ways if self._learned.apply_for is None else ways
            starts["joint training"] = resized(
                width or ways, (self._joint.params, self._joint.inner_opt_state)
            )
        others = {
            name: dataclasses.replace(learned, params=params, inner_opt_state=state)
            for name, (params, state) in starts.items()
        }
        return {"learned": learned, **others}

    @functools.cached_property
    def _random(self) -> AdaptableModel:
        return self._learned.untrained(jax.random.key(0))  # compiles, once for all ways

    def program(
        self, start: str, support: np.ndarray, queries: np.ndarray, *, transductive: bool
    ) -> Hashable:
        """The program of `programs` that answers; arguments are those of `answer`."""
        model = {"learned": self._learned, "joint training": self._joint}.get(start)
        return len(support), len(queries), transductive, _kind(model)

    def answer(
        self, start: str, support: np.ndarray, queries: np.ndarray, *, transductive: bool
    ) -> dict[str, Any]:
        """Adapts to greys `[ways, size, size]` and classifies `[queries, size, size]`, uint8.

        Returns:
          For the page: "probabilities" `[steps + 1][queries][ways]`, at the start and after every
          inner step, "losses" `[steps]` before each step, and "milliseconds".
        """
        model = self.models(len(support))[start]
        colors = lambda greys: np.repeat(greys[..., None], self._channels, axis=-1)
        labels = np.arange(len(support))
        adapt = lambda: model.trajectory(
            colors(support), labels, colors(queries), transductive=transductive
        )
        shape = self.program(start, support, queries, transductive=transductive)
        with precise(self._precision):
            found, spent = _timed(lambda: self.programs.run(shape, adapt))
        return {
            "probabilities": _numbers(found.predictions, 6),
            "losses": _numbers(found.losses, 5),
            "milliseconds": spent,
        }


class Waves:
    """Fits a curve to points, from several initialisations."""

    def __init__(self, learned: AdaptableModel, joint: AdaptableModel | None = None):
        self.models = {"learned": learned, "random": learned.untrained(jax.random.key(0))}
        if joint is not None:
            self.models["joint training"] = dataclasses.replace(learned, params=joint.params)
        self.starts = tuple(name for name in STARTS if name in self.models)
        self.grid = _GRID
        self.programs, self._precision = Programs(), _precision(learned)

    def program(self, start: str, x: Sequence[float], y: Sequence[float]) -> Hashable:
        """The program of `programs` that answers; arguments are those of `answer`."""
        return len(x), _kind(self.models[start])

    def answer(self, start: str, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
        """Adapts to points, all of them in every step.

        Returns:
          For the page: "curves" `[steps + 1][grid]`, at the start and after every inner step,
          "losses" `[steps + 1]`, the mean squared errors of the points, and "milliseconds".
        """
        inputs, targets = np.array([x, y], np.float32)[..., None]
        query = np.concatenate([self.grid[:, None], inputs])
        fit = lambda: self.models[start].trajectory(inputs, targets, query)
        with precise(self._precision):
            found, spent = _timed(lambda: self.programs.run(self.program(start, x, y), fit))
        values = np.asarray(found.predictions, np.float64)[..., 0]
        errors = ((values[:, len(self.grid) :] - targets[:, 0]) ** 2).mean(1)
        return {
            "curves": _numbers(values[:, : len(self.grid)], 4),
            "losses": _numbers(errors, 5),
            "milliseconds": spent,
        }


def _kind(model: AdaptableModel | None) -> bool:
    """What tells apart programs of one shape: whether the optimiser is given no state."""
    return model is not None and model.inner_opt_state is None


def _precision(model: AdaptableModel) -> str | None:
    """The run's precision of matrix products, which JAX keeps by thread."""
    return model.card.get("config", {}).get("matmul_precision")


def _timed(adapt: Callable[[], Trajectory]) -> tuple[Trajectory, float]:
    """A trajectory, computed to its end, and the milliseconds that it took."""
    begun = time.perf_counter()
    found = jax.block_until_ready(adapt())
    return found, round(1e3 * (time.perf_counter() - begun), 1)


def _numbers(values: Any, digits: int) -> list[Any]:
    """Numbers for JSON, which has none that are not finite."""
    values = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=1e9, neginf=-1e9)
    return values.round(digits).tolist()
