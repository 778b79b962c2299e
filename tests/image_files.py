"""Small image files for the tests of the loaders."""

import io

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


def encoded(mode, kind, **options):
    """The bytes of a file with noise in one of Pillow's modes."""
    file = io.BytesIO()
    Image.fromarray(noise(9, 7, 3)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def encoded_array(array, kind):
    """The bytes of a file with the array's own pixels."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()
