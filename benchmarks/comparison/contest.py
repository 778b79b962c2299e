"""Reptile, FOMAML and MAML on the same problems: what each trains on, and the rates to try."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import reptile_jax as rj
from benchmarks.comparison import seeds, sine_maml
from reptile_jax.deploy.recipes import adam_without_momentum

INNER_STEPS = 5  # of every method in training
# Gradients in one task's meta-gradient: the inner ones, the query's, and for MAML one product for
# each inner step that it differentiates through.
GRADIENTS = {"Reptile": INNER_STEPS, "FOMAML": INNER_STEPS + 1, "MAML": 2 * INNER_STEPS + 1}
META_BATCH = 5


@dataclasses.dataclass(frozen=True)
class Size:
    """How long and how many. Budgets are in MAML's meta steps."""

    sine_seeds: int
    omniglot_seeds: int
    sine_budgets: tuple[int, ...]
    sine_tuning_steps: int
    sine_tuning_seeds: int
    sine_tasks: int
    omniglot_budgets: tuple[int, ...]
    omniglot_tuning_steps: int
    omniglot_tuning_seeds: int
    omniglot_tasks: int
    omniglot_eval_steps: int  # a multiple of 5
    stability_steps: int
    stability_grid: int  # rates on each side
    stability_seeds: int
    timing_rounds: int


SIZES = {
    "tiny": Size(2, 2, (10, 20), 10, 2, 10, (2,), 2, 1, 3, 5, 10, 2, 2, 2),
    "small": Size(8, 3, (300, 1000, 3000), 1000, 3, 200, (80, 240), 100, 1, 60, 25, 500, 6, 5, 7),
    "full": Size(
        10, 5, (1000, 3000, 10_000, 30_000), 5000, 5, 1000, (1000, 10_000, 60_000), 2000, 2, 1000,
        50, 5000, 10, 10, 15,
    ),
}  # fmt: skip


class Entrant(NamedTuple):
    """A method on a problem: what it trains on, and the rates it may choose from."""

    method: seeds.Method
    training: Any  # p(τ)
    inner_rates: Sequence[float]
    outer_rates: Sequence[float]


class Problem(NamedTuple):
    """What is learned, and how it is scored: the same for every method."""

    entrants: Mapping[str, Entrant]
    loss_fn: Any
    init: Any
    score_fn: Any  # a dictionary of scores
    higher: bool  # is better
    validation: Any  # p(τ)
    held_out: Any
    score_every: int
    num_tasks: int
    budgets: Sequence[int]
    tuning_steps: int
    tuning_seeds: int
    steps_timed: int
    side_by_side: bool


# MAML's outer rates are Adam's; Reptile's are the paper's ε. Each method has compiled programs.
SGD = {
    "Reptile": seeds.Method(rj.reptile, optax.sgd, optax.sgd),
    "FOMAML": seeds.Method(rj.fomaml, optax.sgd, optax.adam),
    "MAML": seeds.Method(rj.maml, optax.sgd, optax.adam),
}


# The inner and outer rates that each may choose from; more of them where trainings are short.
RATES = {
    "sine": {
        "Reptile": ((0.01, 0.02, 0.05, 0.1), (0.5, 1.0, 2.0, 4.0)),
        **dict.fromkeys(("FOMAML", "MAML"), ((0.005, 0.01, 0.02, 0.05), (1e-3, 3e-3, 1e-2, 3e-2))),
    },
    "omniglot": {
        "Reptile": ((1e-3, 3e-3), (0.5, 1.0)),
        **dict.fromkeys(("FOMAML", "MAML"), ((0.1, 0.4), (1e-3, 3e-3))),
    },
}


_OMNIGLOT_REPTILE = seeds.Method(
    rj.reptile, adam_without_momentum, optax.sgd, inner_opt_state="average"
)


def sine(size: Size) -> Problem:
    """Sine waves. Each method sees 50 points of a wave.

    Reptile takes five mini-batches of ten. The others take ten points, five times over as at
    evaluation, and all 50 as the query set. Held-out and validation waves are new draws.
    """
    split = rj.tasks.sinusoids(shots=10, steps=INNER_STEPS)
    waves = {"Reptile": rj.tasks.sinusoids(steps=INNER_STEPS), "FOMAML": split, "MAML": split}
    entrants = {
        name: Entrant(method, waves[name], *RATES["sine"][name]) for name, method in SGD.items()
    }
    return Problem(
        entrants,
        sine_maml.LOSS,
        sine_maml.init,
        lambda params, task: {"error": sine_maml.LOSS(params, task.query)},
        False,
        sine_maml.HELD_OUT,
        sine_maml.HELD_OUT,
        1,
        size.sine_tasks,
        size.sine_budgets,
        size.sine_tuning_steps,
        size.sine_tuning_seeds,
        200,
        True,
    )


_VALIDATION = 200  # characters of the training split, to choose rates on


def omniglot(data: Path, size: Size) -> Problem:
    """Omniglot 5-way 1-shot with the paper's network. Each method sees ten images of a class.

    Reptile trains as in the paper, on five mini-batches of ten of all 50. The others train as they
    are tested: one image of each class five times over, the other nine in the query set. Rates are
    chosen on 200 characters of the training split that no method trains on.
    """
    splits, model = _omniglot(data), rj.nn.omniglot_net(5)
    classes = 4 * _VALIDATION  # each character, followed by its turned copies
    few = functools.partial(rj.tasks.few_shot, ways=5)

    def entrant(name, method, **episode):
        training = few(_part(splits.train, slice(None, -classes)), steps=INNER_STEPS, **episode)
        return Entrant(method, training, *RATES["omniglot"][name])

    as_tested = {"shots": 1, "query_shots": 9, "batch_size": 5}
    tested = {"shots": 1, "query_shots": 1, "steps": size.omniglot_eval_steps, "batch_size": 5}
    entrants = {
        "Reptile": entrant("Reptile", _OMNIGLOT_REPTILE, shots=10, batch_size=10),
        **{name: entrant(name, SGD[name], **as_tested) for name in ("FOMAML", "MAML")},
    }
    return Problem(
        entrants,
        rj.nn.cross_entropy(model.apply),
        lambda key: model.init(key, jnp.zeros((1, 28, 28, 1))),
        rj.tasks.accuracy(model.apply),
        True,
        few(_part(splits.train, slice(-classes, None, 4)), **tested),
        few(splits.test, **tested),
        5,
        size.omniglot_tasks,
        size.omniglot_budgets,
        size.omniglot_tuning_steps,
        size.omniglot_tuning_seeds,
        2,
        not seeds.sequential_on_cpu(),
    )


@functools.cache
def _omniglot(data: Path):
    return rj.datasets.load_omniglot(data)


def _part(classes: rj.tasks.ImageClasses, which: slice) -> rj.tasks.ImageClasses:
    return classes._replace(starts=classes.starts[which], counts=classes.counts[which])
