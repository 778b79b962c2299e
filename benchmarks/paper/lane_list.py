"""The trainings of `lanes`, by program."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Lane(NamedTuple):
    """The numbers of a training."""

    seed: Any = 0
    rate: Any = 1e-3  # of the inner steps
    scale: Any = 0.1  # of squared distances, in logits
    decay: Any = 0.0  # share of the parameters that each inner step takes off
    mirrored: Any = 0.0  # share of the classes
    classes: Any = 0.0  # how much they are distorted; `levers.Distorted`
    images: Any = 0.0  # the same of each image
    smoothed: Any = 0.0  # share of every label
    outer: Any = 1.0  # the first outer step
    kept: Any = 0.0  # share of it in the last one; then the mean of the later iterates is scored


WORDS = Lane(
    "seed {:g}",
    "inner rate {:g}",
    "scale {:g}",
    "weights decay by {:g}",
    "half of the classes mirrored",
    "classes distorted by {:g}",
    "images distorted by {:g}",
    "labels smoothed by {:g}",
    "outer step from {:g}",
    "outer step kept, iterates averaged",
)


class Program(NamedTuple):
    """Trainings side by side."""

    lanes: Sequence[Lane]
    ways: int = 60  # with two images of each in a mini-batch
    inner_steps: int = 5
    meta_batch: int = 2


FAST = Lane(rate=2e-3)
ALL = FAST._replace(mirrored=0.5, classes=0.1)
PROGRAMS = {
    "prototypes at 60 ways": Program(
        [
            *(Lane(), Lane(seed=1), Lane(rate=5e-4), FAST, Lane(rate=4e-3)),
            *(Lane(scale=0.03), Lane(scale=0.3), Lane(decay=1e-4), FAST._replace(decay=1e-4)),
            *(Lane(mirrored=0.5), Lane(classes=0.05), Lane(classes=0.15), Lane(images=0.03)),
            *(FAST._replace(mirrored=0.5), ALL, ALL._replace(images=0.03)),
            *(FAST._replace(smoothed=0.1), FAST._replace(scale=0.05)),
            *(FAST._replace(kept=1.0), FAST._replace(outer=0.5)),
        ]
    ),
    "prototypes at 100 ways": Program([Lane(), FAST, ALL], ways=100),
    "prototypes at 20 ways": Program([Lane(), FAST, Lane(rate=4e-3)], ways=20),
    "prototypes at 60 ways, ten inner steps": Program([Lane(), FAST], inner_steps=10),
    "prototypes at 60 ways, a meta-batch of five": Program([Lane(), FAST], meta_batch=5),
}
