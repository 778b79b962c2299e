"""Pictures in the form of mini-ImageNet, to try its whole path without the data set.

Every class is a coarse pattern of colours, and every picture is that pattern under noise. That
shows that the path works, its time and its memory; it says nothing of accuracy on photographs.
"""

import contextlib
import dataclasses
import multiprocessing
import pickle
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig


def config(meta_steps: int) -> FewShotConfig:
    """Row m15, short."""
    return dataclasses.replace(
        presets.PAPER["m15"],
        meta_steps=meta_steps,
        eval_tasks=100,
        steps_per_dispatch=10,
        save_every=50,
    )


@contextlib.contextmanager
def mini_imagenet() -> Iterator[Path]:
    """A folder of pictures, made by another process, which takes the memory that this needs."""
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(Path(folder),))
        maker.start()
        maker.join()
        yield Path(folder)


def make(folder: Path, per_class: int = 600, size: int = 84) -> None:
    """Writes three pickles in one of mini-ImageNet's usual forms: 64, 16 and 20 classes."""
    random = np.random.default_rng(0)
    for split, classes in {"train": 64, "val": 16, "test": 20}.items():
        images = np.empty((classes * per_class, size, size, 3), np.uint8)
        for label in range(classes):
            pattern = random.integers(64, 192, (7, 7, 3)).repeat(12, 0).repeat(12, 1)
            for index in range(label * per_class, (label + 1) * per_class):
                noise = random.integers(-64, 64, (size, size, 3))
                images[index] = np.roll(pattern, random.integers(-8, 9, 2), (0, 1)) + noise
        names = {
            f"{split}{label:02d}": list(range(label * per_class, (label + 1) * per_class))
            for label in range(classes)
        }
        with open(folder / f"mini-imagenet-cache-{split}.pkl", "wb") as file:
            pickle.dump({"image_data": images, "class_dict": names}, file, protocol=4)


def peak_mib() -> float:
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
