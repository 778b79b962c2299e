"""Named configurations: the paper's rows (Nichol et al. 2018, appendix A) and others.

The released code sums the loss over the inner batch. Here it is that sum divided by training's
`inner_batch`, which Adam does not feel; a plain-SGD rate of the paper is multiplied by that size.
The mean would be something else in evaluation, whose batches have another size: the second moment
that it starts from is training's, so half as many examples make steps half as long.
"""

import dataclasses
import math
from typing import Literal, TypeAlias, get_args

from reptile_jax.reptile import InnerState
from reptile_jax.tasks import check_integers

Classifier: TypeAlias = Literal["learned", "zero"]

# The config.json of an older run lacks the fields that came later. Their defaults are what was done
# before, so that it goes on as it began.

_LARGEST_RATE = 1e9  # far beyond any that learns, and far from what float32 can hold


@dataclasses.dataclass(frozen=True)
class Sinusoid:
    """The paper's sine waves, by batched Reptile."""

    meta_steps: int = 30_000
    meta_batch: int = 5  # tasks in a meta step
    meta_rate: float = 1.0  # ε at the start, annealed linearly to 0
    inner_steps: int = 5
    inner_batch: int = 10
    inner_rate: float = 0.02  # of SGD
    eval_shots: int = 10  # points given at evaluation
    eval_steps: int = 32  # inner steps at evaluation, each on all points given
    eval_tasks: int = 1000
    steps_per_dispatch: int = 1000
    save_every: int = 5000  # meta steps between checkpoints
    give_up_after: int = 100  # meta steps in a row in which no task is finite
    seed: int = 0


# The setting of the authors' demonstration.
SERIAL_SINUSOID = Sinusoid(meta_batch=1, meta_rate=0.1)


@dataclasses.dataclass(frozen=True)
class FewShotImages:
    """N-way K-shot image classification as in the paper; the defaults are row o15."""

    dataset: Literal["omniglot", "mini-imagenet", "images"] = "omniglot"
    ways: int = 5  # classes in an episode
    shots: int = 1  # support images of each class at evaluation
    train_shots: int = 10  # support images of each class in training
    inner_batch: int = 10
    balanced_batches: bool = False  # every mini-batch of training holds each class as often
    inner_steps: int = 5
    inner_rate: float = 1e-3  # of Adam with β1 = 0
    inner_state: InnerState = "averaged"  # where inner optimisers start; the original: carried
    # Where the linear classifier starts: meta-learned with the rest, or at zero in every task (Kao,
    # Chiu & Chen 2021, arXiv:2106.15367). The inner optimiser's state of it goes on all the same.
    classifier: Classifier = "learned"
    meta_batch: int = 5  # tasks in a meta step
    meta_steps: int = 100_000
    meta_rate: float = 1.0  # ε at the start
    meta_rate_final: float = 0.0  # ε at the end, annealed linearly
    meta_momentum: float = 0.0  # Nesterov's, of the outer step
    eval_batch: int = 5
    balanced_eval: bool = False  # every mini-batch of evaluation holds each class as often
    eval_steps: int = 50
    eval_tasks: int = 10_000
    query_shots: int = 1  # query images of each class at evaluation
    transductive: bool = False  # which of the two scores is this configuration's
    split: Literal["paper", "background"] = "paper"  # of Omniglot
    split_seed: int = 0  # of the split of a folder of images into training and held-out classes
    test_fraction: float = 0.2  # of its classes that are held out
    size: int = 28  # height and width of the images; from 64 on, the mini-ImageNet network
    color: Literal["grey", "rgb"] = "grey"
    steps_per_dispatch: int = 100
    save_every: int = 1000  # meta steps between checkpoints
    give_up_after: int = 100  # meta steps in a row in which no task is finite
    seed: int = 0


def check(config: Sinusoid | FewShotImages) -> None:
    """Raises a ValueError for a value that could only fail later."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if field.type is float:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is a finite number, got {value!r}.")
            largest = 1 if name == "meta_momentum" else _LARGEST_RATE
            if not 0 <= value <= largest:
                raise ValueError(f"{name} is between 0 and {largest:g}, got {value}.")
        elif field.type is int:
            least = 2 if name == "eval_tasks" else 0 if name in ("seed", "split_seed") else 1
            try:
                check_integers(least, **{name: value})
            except TypeError as error:
                raise ValueError(error) from None
        else:
            choices = (False, True) if field.type is bool else get_args(field.type)
            if type(value) is not type(choices[0]) or value not in choices:
                raise ValueError(
                    f"{name} is one of {', '.join(map(repr, choices))}, got {value!r}."
                )
    if isinstance(config, FewShotImages) and config.balanced_eval:
        _check_multiple("eval_batch", config)


def _check_multiple(name: str, config: FewShotImages) -> None:
    if (size := getattr(config, name)) % config.ways:
        raise ValueError(
            f"balanced mini-batches hold each of {config.ways} classes as often: {name} is a "
            f"multiple of ways, got {size}."
        )


def check_training(config: FewShotImages) -> None:
    """Raises a ValueError for values that make no training, alone or together."""
    if config.balanced_batches:
        _check_multiple("inner_batch", config)
    meant_for = {"omniglot": ("split",), "images": ("split_seed", "test_fraction")}
    for dataset, names in meant_for.items():
        for name in names:
            given = getattr(config, name)
            if config.dataset != dataset and given != getattr(FewShotImages, name):
                raise ValueError(
                    f"{name} is for {dataset} alone: leave {name}={given!r} out for "
                    f"{config.dataset}."
                )


def _rows() -> dict[str, FewShotImages]:
    o5 = FewShotImages()
    o20 = dataclasses.replace(
        o5,
        ways=20,
        inner_batch=20,
        inner_steps=10,
        inner_rate=5e-4,
        meta_steps=200_000,
        eval_batch=10,
    )
    m5 = dataclasses.replace(
        o5, dataset="mini-imagenet", train_shots=15, inner_steps=8, size=84, color="rgb"
    )
    rows = {
        "o15": o5,
        "o55": dataclasses.replace(o5, shots=5),
        "o120": o20,
        "o520": dataclasses.replace(o20, shots=5),
        "m15": m5,
        "m55": dataclasses.replace(m5, shots=5, eval_batch=15),
    }
    transductive = {
        f"{name}t": dataclasses.replace(row, transductive=True) for name, row in rows.items()
    }
    return dict(sorted((rows | transductive).items()))


PAPER: dict[str, FewShotImages] = _rows()
# Not of the paper: classifiers that start every task at zero, four times the inner rate, and more
# meta steps of fewer tasks; in the best for 1-shot, mini-batches that hold every class as often.
_PAIRS = FewShotImages(classifier="zero", inner_rate=4e-3, meta_batch=2, meta_steps=62_500)
_BALANCED = dataclasses.replace(_PAIRS, balanced_batches=True)
BEYOND: dict[str, FewShotImages] = {
    # With a tenth of o120's inner gradients:
    "o120-balanced-tenth": dataclasses.replace(
        PAPER["o120"],
        classifier="zero",
        inner_rate=2e-3,
        balanced_batches=True,
        meta_batch=2,
        meta_steps=50_000,
    ),
    "o15-balanced": dataclasses.replace(_BALANCED, meta_steps=250_000),
    # And with a quarter of o15's inner gradients:
    "o15-balanced-quarter": _BALANCED,
    "o15-zero-pairs": _PAIRS,
}
ALL: dict[str, FewShotImages] = PAPER | BEYOND
