"""Tomography: an image from few of its projections. Phantoms are drawn on the device.

A task is one phantom, seen from some angles. A neural field, a network from a point to the value
there, is fitted to the projections of a few views; the image itself is what it is scored by. The
setting is that of Tancik et al. 2021, "Learned Initializations for Optimizing Coordinate-Based
Neural Representations", section 4.2.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reptile_jax._types import Apply, Key, LossFn, Params, ScoreFn, Task
from reptile_jax._values import check_integers, check_number
from reptile_jax.tasks.minibatches import minibatches

# Grey value, semi-axes in x and y, centre, and angle of each ellipse, in a square from -1 to 1:
# Shepp & Logan 1974, with the grey values of Toft 1996 (table B.1), which show more contrast.
_ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, math.radians(-18)),
    (-0.2, 0.16, 0.41, -0.22, 0.0, math.radians(18)),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.605, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


class Views(NamedTuple):
    """Projections of one image: a mini-batch of the inner loop."""

    angles: jax.Array  # [views] radians
    projections: jax.Array  # [views, size]
    image: jax.Array | None = None  # in a query set: the image itself [size, size]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Phantoms:
    """Phantoms seen from some angles. Make one with `phantoms`."""

    size: int = dataclasses.field(metadata={"static": True})
    views: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})
    batch_size: int | None = dataclasses.field(metadata={"static": True})
    evenly_spaced: bool = dataclasses.field(metadata={"static": True})
    noise: float = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One phantom: support `[steps, batch_size, ...]`, and all its views and itself as query.

        Mini-batches of views are drawn as in `minibatches`.
        """
        phantom_key, angle_key, order_key = jax.random.split(key, 3)
        ellipses = jnp.asarray(_ELLIPSES, jnp.result_type(float))
        ellipses += self.noise * jax.random.normal(phantom_key, ellipses.shape)
        image = draw_ellipses(ellipses, self.size)
        if self.evenly_spaced:
            angles = math.pi / self.views * jnp.arange(self.views, dtype=image.dtype)
        else:
            angles = jax.random.uniform(angle_key, (self.views,), maxval=math.pi)
        views = Views(angles, project(image, angles))
        batches = minibatches(order_key, views, steps=self.steps, batch_size=self.batch_size)
        return Task(batches, views._replace(image=image))


def phantoms(
    *,
    size: int = 32,
    views: int = 20,
    steps: int = 12,
    batch_size: int | None = 2,
    evenly_spaced: bool = False,
    noise: float = 0.05,
) -> Phantoms:
    """Shepp and Logan's phantom with Gaussian noise on each number of each of its ten ellipses.

    The defaults are for training. Tancik et al. give all 20 views to each inner step, which is
    `batch_size=None`; mini-batches of views learn more.

    Args:
      size: pixels in height and width, and rays of a projection; at least 8.
      views: angles that a phantom is seen from, each in [0, π) radians.
      steps: inner steps.
      batch_size: views of an inner step, at most `views`. None is all of them.
      evenly_spaced: the angles are 0, π/views, 2π/views, ...; otherwise each is drawn uniformly.
      noise: standard deviation of what is added to grey values, axes, centres and angles.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for sizes out of range, more views in a step than there are angles, or noise that
        is not between 0 and 1.
    """
    views, steps = check_integers(views=views, steps=steps)
    (size,) = check_integers(8, size=size)
    if batch_size is not None:
        (batch_size,) = check_integers(batch_size=batch_size)
    noise = check_number("noise", noise, least=0, largest=1)
    problem = None
    if batch_size is not None and batch_size > views:
        problem = f"an inner step has at most all views: batch_size={batch_size} of views={views}."
    elif not isinstance(evenly_spaced, bool):
        problem = f"evenly_spaced is True or False, got {evenly_spaced!r:.80}."
    if problem:
        raise ValueError(problem)
    return Phantoms(size, views, steps, batch_size, evenly_spaced, noise)


def draw_ellipses(ellipses: jax.Array, size: int) -> jax.Array:
    """The sum of ellipses at the centres of pixels, clipped to [0, 1]: `[size, size]`, y first.

    Args:
      ellipses: `[ellipses, 6]`: grey value, semi-axes in x and y, centre x and y, and the angle in
        radians by which the ellipse is turned from x to y. The image goes from -1 to 1.
    """
    grey, a, b, center_x, center_y, angle = jnp.asarray(ellipses).T[:, None, None]
    centers = jnp.linspace(-1, 1, 2 * size + 1)[1::2]
    x, y = centers[None, :, None] - center_x, centers[:, None, None] - center_y
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    inside = ((x * cos + y * sin) / a) ** 2 + ((y * cos - x * sin) / b) ** 2 <= 1
    return jnp.clip(jnp.sum(jnp.where(inside, grey, 0), -1), 0, 1)


def project(image: jax.Array, angles: jax.Array) -> jax.Array:
    """Parallel projections of an image: `[size, size]` and `[views]` -> `[views, size]`. Linear.

    Ray i of the view at angle α is the line x cos α + y sin α = t, where t is the centre of pixel i
    of a row. The projection is the integral of the image along it, of a square whose sides have
    length 1; so it is the mean of the pixels if they fill the ray. What lies beyond the first and
    the last ray is left out, such as the square's corners.

    The operator is distance-driven (De Man & Basu 2004): each pixel falls on the detector with its
    width along x or y, whichever the detector is closer to, and each ray gets the part that it
    covers. So a constant area has constant projections, and the sum of a view is that of the image
    if nothing is left out. A pixel is at most as wide as a ray, so it meets at most two.

    Raises:
      ValueError: for an image that is not square, or angles that are not `[views]`.
    """
    shape = jnp.shape(image)
    if len(shape) != 2 or shape[0] != shape[1] or jnp.ndim(angles) != 1:
        raise ValueError(
            "project takes an image [size, size] and angles [views], got shapes "
            f"{shape} and {jnp.shape(angles)}."
        )
    size, views = shape[0], len(angles)
    image, angles = jnp.asarray(image), jnp.asarray(angles)
    centers = jnp.arange(size, dtype=angles.dtype) + 0.5 - size / 2
    cos, sin = (f(angles)[:, None, None] for f in (jnp.cos, jnp.sin))
    width = jnp.maximum(abs(cos), abs(sin))
    left = centers[None, None, :] * cos + centers[None, :, None] * sin + (size - width) / 2
    ray = jnp.floor(left)
    second = jnp.maximum(left + width - (ray + 1), 0) / width  # the share of the next ray
    # A row of the detector has a ray more on the left, and two on the right, for what is left out.
    row = jnp.arange(views)[:, None, None] * (size + 3)
    index = row + 1 + jnp.clip(ray, -1, size).astype(jnp.int32)
    sums = jnp.zeros(views * (size + 3), image.dtype)
    for at, share in ((index, 1 - second), (index + 1, second)):
        sums = sums.at[at].add(share * image[None], mode="promise_in_bounds")
    return sums.reshape(views, size + 3)[:, 1 : size + 1] / size


def pixel_points(size: int) -> jax.Array:
    """The points (x, y) of an image's pixels `[size * size, 2]`, row by row, in [0, 1]."""
    centers = jnp.linspace(0, 1, 2 * size + 1)[1::2]
    y, x = jnp.meshgrid(centers, centers, indexing="ij")
    return jnp.stack([x.reshape(-1), y.reshape(-1)], 1)


def field_image(apply: Apply, params: Params, size: int) -> jax.Array:
    """The image `[size, size]` of a field `(params, points [batch, 2]) -> values [batch, 1]`."""
    return apply(params, pixel_points(size)).reshape(size, size)


def projection_loss(apply: Apply) -> LossFn:
    """The mean squared error of a field's projections: a loss on `Views`.

    The field is evaluated once at each pixel, however many views there are.

    Args:
      apply: `(params, points [batch, 2]) -> values [batch, 1]`.
    """

    def loss_fn(params: Params, views: Views) -> jax.Array:
        image = field_image(apply, params, views.projections.shape[-1])
        return jnp.mean((project(image, views.angles) - views.projections) ** 2)

    return loss_fn


def psnr(apply: Apply) -> ScoreFn:
    """The peak signal-to-noise ratio of a field's image, in dB: -10 log10 of the squared error."""

    def score_fn(params: Params, task: Task) -> jax.Array:
        image = field_image(apply, params, task.query.image.shape[-1])
        return -10 * jnp.log10(jnp.mean((image - task.query.image) ** 2))

    return score_fn
