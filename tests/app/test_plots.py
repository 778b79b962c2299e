"""The pictures of a run: they are drawn, whatever they are to show."""

import numpy as np
from PIL import Image

from reptile_jax.app import plots


def colours(path):
    """How many colours a picture has; one that is empty has few."""
    with Image.open(path) as picture:
        return len(set(picture.convert("RGB").get_flattened_data()))


def test_a_learning_curve_has_gaps_where_nothing_was_finite(tmp_path):
    steps = np.arange(10.0)
    values = np.where(steps == 4, np.nan, 1 / (1 + steps))
    path = tmp_path / "curve.png"
    plots.learning_curve(
        path, "a $run$ of_[mine]", {"first": (steps, values), "last": (steps, 0 * steps)}
    )
    assert colours(path) > 50


def test_an_initialisation_that_diverged_flattens_no_other(tmp_path):
    grid = np.linspace(-5, 5, 50)
    given = [(grid[:3], np.sin(grid[:3])), (grid[3:6], np.cos(grid[3:6]))]
    waves = [np.sin(grid), np.cos(grid)]
    draw = lambda name, scale: plots.adaptation(
        tmp_path / name,
        grid,
        waves,
        given,
        {
            "good": [{0: 0 * wave, 8: wave} for wave in waves],
            "bad": [{1: scale * wave} for wave in waves],
        },
    )
    draw("one.png", 1e30)
    draw("other.png", 2e30)
    left = [np.asarray(Image.open(tmp_path / name))[:, :400] for name in ("one.png", "other.png")]
    np.testing.assert_array_equal(*left)
    assert colours(tmp_path / "one.png") > 50
