"""Phantoms and their projections, against closed forms and a phantom of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

import reptile_jax as rj
from reptile_jax.tasks import draw_ellipses, phantoms, pixel_points, project, projection_loss, psnr
from tests.nonsense import answered, fuzz, mostly

ELLIPSE = np.array([0.8, 0.6, 0.35, 0.1, -0.15, 0.5])  # grey, a, b, x, y, angle

# One program each, where an operation after the other would be hundreds.
drawn = jax.jit(draw_ellipses, static_argnums=1)
projected = jax.jit(project)


def sample(key, **how):
    return jax.jit(phantoms(**how).sample)(jax.random.key(key))


def chords(ellipse: np.ndarray, angles: np.ndarray, size: int) -> np.ndarray:
    """The exact projections `[views, size]`: lengths of chords in a square of side 2, halved."""
    grey, a, b, x, y, turned = ellipse
    t = (np.arange(size) + 0.5) / size * 2 - 1
    reach = (a * np.cos(angles - turned)) ** 2 + (b * np.sin(angles - turned)) ** 2
    off = t[None] - (x * np.cos(angles) + y * np.sin(angles))[:, None]
    length = 2 * a * b * np.sqrt(np.maximum(reach[:, None] - off**2, 0)) / reach[:, None]
    return grey * length / 2


def test_projections_of_an_ellipse_converge_to_its_chords():
    angles = np.linspace(0, np.pi, 9)[:-1]  # 45° among them, where pixels are seen on edge
    errors = []
    for size in (32, 128, 512):
        image = drawn(ELLIPSE[None], size)
        exact = chords(ELLIPSE, angles, size)
        errors.append(np.abs(np.asarray(projected(image, angles)) - exact).mean() / exact.mean())
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 2.5
    assert errors[2] < errors[1] / 2.5


def test_a_constant_has_constant_projections():
    """Within the circle that no view leaves, whatever the angle."""
    angles = np.linspace(0, 2 * np.pi, 41)
    middle = np.asarray(projected(jnp.ones((64, 64)), angles))[:, 32]
    across = 1 / np.maximum(abs(np.cos(angles)), abs(np.sin(angles)))
    np.testing.assert_allclose(middle, across, rtol=0.02)


@pytest.mark.slow
def test_every_view_of_an_object_has_the_same_sum():
    image = sample(0, size=48, noise=0.0).query.image
    sums = projected(image, np.linspace(0, np.pi, 11)).sum(1)
    np.testing.assert_allclose(sums, image.sum() / 48, rtol=1e-5)


def test_the_views_along_the_axes_are_sums_of_columns_and_rows():
    image = jax.random.uniform(jax.random.key(0), (16, 16))
    upright, lying = projected(image, jnp.array([0.0, np.pi / 2]))
    np.testing.assert_allclose(upright, image.mean(0), rtol=1e-5)
    np.testing.assert_allclose(lying, image.mean(1), atol=1e-5)


def test_the_gradient_of_the_projection_is_its_transpose():
    keys = jax.random.split(jax.random.key(0), 3)
    image, view = jax.random.normal(keys[0], (16, 16)), jax.random.normal(keys[1], (5, 16))
    angles = jax.random.uniform(keys[2], (5,), maxval=np.pi)
    seen, back = jax.vjp(lambda image: projected(image, angles), image)
    np.testing.assert_allclose(jnp.vdot(seen, view), jnp.vdot(image, back(view)[0]), rtol=1e-4)
    matrix = jax.jacobian(projected)(image, angles).reshape(80, 256)
    np.testing.assert_allclose(matrix @ image.reshape(-1), seen.reshape(-1), atol=1e-5)
    assert (matrix >= 0).all()


def test_without_noise_the_phantom_is_shepp_and_logans():
    size, degrees = 64, np.pi / 180
    x = -1 + (2 * np.arange(size) + 1) / size
    x, y = np.meshgrid(x, x)
    expected = np.zeros((size, size))
    for grey, a, b, x0, y0, turned in [
        (1, 0.69, 0.92, 0, 0, 0),
        (-0.8, 0.6624, 0.874, 0, -0.0184, 0),
        (-0.2, 0.11, 0.31, 0.22, 0, -18),
        (-0.2, 0.16, 0.41, -0.22, 0, 18),
        (0.1, 0.21, 0.25, 0, 0.35, 0),
        (0.1, 0.046, 0.046, 0, 0.1, 0),
        (0.1, 0.046, 0.046, 0, -0.1, 0),
        (0.1, 0.046, 0.023, -0.08, -0.605, 0),
        (0.1, 0.023, 0.023, 0, -0.605, 0),
        (0.1, 0.023, 0.046, 0.06, -0.605, 0),
    ]:
        along = np.array([np.cos(turned * degrees), np.sin(turned * degrees)])
        u = (x - x0) * along[0] + (y - y0) * along[1]
        v = (y - y0) * along[0] - (x - x0) * along[1]
        expected += grey * (u**2 / a**2 + v**2 / b**2 <= 1)
    image = sample(5, size=size, noise=0).query.image
    np.testing.assert_allclose(image, expected.clip(0, 1), atol=1e-6)


@pytest.mark.slow
def test_phantoms_differ_and_stay_within_bounds():
    images = jax.vmap(phantoms().sample)(jax.random.split(jax.random.key(0), 8)).query.image
    assert images.min() >= 0
    assert images.max() <= 1
    assert jnp.std(images, 0).max() > 0.1


def test_views_are_projections_of_the_phantom():
    task = sample(1, size=16, views=6, steps=3, batch_size=2)
    assert task.support.angles.shape == (3, 2)
    seen = projected(task.query.image, task.support.angles.reshape(-1))
    np.testing.assert_allclose(task.support.projections.reshape(6, 16), seen, atol=1e-6)
    assert len(set(task.support.angles.reshape(-1).tolist())) == 6
    support = sample(1, size=16, views=4, batch_size=None, evenly_spaced=True).support
    assert support.steps == 12
    np.testing.assert_allclose(support.examples.angles, np.arange(4) * np.pi / 4, rtol=1e-6)


def test_a_field_that_is_the_phantom_has_no_loss():
    task = sample(2, size=16, views=3, batch_size=3)
    exact = lambda image, points: image.reshape(-1, 1)
    assert jax.jit(projection_loss(exact))(task.query.image, task.query) < 1e-12
    off = task.query.image + 0.1
    np.testing.assert_allclose(psnr(exact)(off, task), 20.0, rtol=1e-4)
    np.testing.assert_allclose(pixel_points(8)[:9, 0] * 16, [1, 3, 5, 7, 9, 11, 13, 15, 1])
    np.testing.assert_allclose(pixel_points(8)[7:9, 1] * 16, [1, 3])


@pytest.mark.slow
def test_reptile_learns_to_reconstruct():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # of Optax
        field = rj.nn.Field(features=16, width=16, layers=3, scale=10.0)
        loss_fn, inner = projection_loss(field.apply), optax.adam(3e-3, b1=0.0)
        learner = rj.meta_learner(
            rj.reptile(loss_fn, inner), optax.sgd(0.5), inner_opt_state="average"
        )
        first = field.init(jax.random.key(0), jnp.zeros((1, 2)))
        distribution = phantoms(size=8, views=4, steps=4)
        *_, (state, _) = rj.train(
            learner, learner.init(first), distribution, jax.random.key(1), until=60, meta_batch=1
        )
        scores = [
            rj.evaluate(
                loss_fn,
                psnr(field.apply),
                inner,
                params,
                distribution,
                jax.random.key(2),
                num_tasks=8,
            ).mean
            for params in (first, state.params)
        ]
    assert scores[1][-1] > scores[0][-1] + 1


def test_bad_phantoms_are_named():
    with pytest.raises(ValueError, match="size is at least 8, got 4"):
        phantoms(size=4)
    with pytest.raises(ValueError, match="views is at least 1, got 0"):
        phantoms(views=0)
    with pytest.raises(ValueError, match="at most all views: batch_size=3 of views=2"):
        phantoms(views=2, batch_size=3)
    with pytest.raises(ValueError, match="noise is a number between 0 and 1, got nan"):
        phantoms(noise=float("nan"))
    with pytest.raises(ValueError, match=r"got shapes \(4, 5\) and \(2,\)"):
        project(jnp.ones((4, 5)), jnp.ones(2))


@fuzz
@given(mostly(size=8, views=2, steps=2, batch_size=2, evenly_spaced=True, noise=0.1))
def test_phantoms_of_anything(arguments):
    with answered():
        drawn = jax.eval_shape(phantoms(**arguments).sample, jax.random.key(0))
        assert drawn.query.image.ndim == 2
