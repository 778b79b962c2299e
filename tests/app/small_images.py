"""A small data set of images, and options that make a run on it short."""

from pathlib import Path

import numpy as np
from PIL import Image

OPTIONS = [
    *("--ways", "2", "--shots", "2", "--train-shots", "3", "--inner-batch", "4"),
    *("--inner-steps", "3", "--size", "16", "--color", "grey", "--query-shots", "2"),
    *("--eval-batch", "4", "--eval-steps", "5", "--eval-tasks", "20", "--meta-batch", "2"),
    *("--steps-per-dispatch", "8", "--save-every", "16"),
]


def train_command(data: Path, *more: str) -> list[str]:
    """The arguments of a training on the data set."""
    return ["train", "images", "--data", str(data), *OPTIONS, *more]


def write(folder: Path) -> Path:
    """Eight classes of grey images: a bar at an angle of its own, in noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    for number in range(8):
        angle = np.pi * number / 8
        bar = np.abs(x * np.cos(angle) + y * np.sin(angle)) < 0.3
        (folder / f"class{number}").mkdir(parents=True)
        for image in range(6):
            pixels = np.uint8(120 * bar + rng.integers(0, 60, (16, 16)))
            Image.fromarray(pixels).save(folder / f"class{number}" / f"{image}.png")
    return folder
