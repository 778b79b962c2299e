"""Small image files for the tests of the loaders."""

import numpy as np
from PIL import Image


def class_images(classes, index):
    """The images of one class of `ImageClasses`."""
    start, count = int(classes.starts[index]), int(classes.counts[index])
    return classes.images[start : start + count]


def saved(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
