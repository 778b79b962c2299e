"""N-way K-shot episodes, drawn on the device from one array of images."""

from typing import NamedTuple

import jax
import numpy as np


class ImageClasses(NamedTuple):
    """Images grouped by class in one array; classes may differ in size.

    The images of class `c` are `images[starts[c] : starts[c] + counts[c]]`.
    """

    images: jax.Array | np.ndarray  # [images, height, width, channels] uint8
    starts: jax.Array | np.ndarray  # [classes] int32
    counts: jax.Array | np.ndarray  # [classes] int32
