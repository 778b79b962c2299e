"""The pictures of a run: they are drawn, whatever they are to show."""

import numpy as np
import pytest
from PIL import Image

from reptile_jax.app import plots
from tests.test_checkpoint import files_of_at_most


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


@pytest.mark.attack
def test_a_full_disk_names_the_picture_and_leaves_the_old_one(tmp_path):
    path, steps = tmp_path / "curve.png", np.arange(3.0)
    plots.learning_curve(path, "run", {"first": (steps, steps)})
    before = path.read_bytes()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large") as info:
        plots.learning_curve(path, "run", {"first": (steps, 2 * steps)})
    assert info.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_shows_right_answers_in_green_and_wrong_ones_in_red(tmp_path):
    images = {name: np.ones((1, 2, 8, 8, 1)) for name in ("support", "query")}
    labels = {name: np.array([[0, 1]]) for name in images}
    right = np.array([[[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]]])
    draw = lambda name, probabilities: plots.episodes(
        tmp_path / name, np.array([0, 5]), images, labels, probabilities
    )
    draw("right.png", right)
    draw("wrong.png", right[..., ::-1])
    red, green = (214, 39, 40), (44, 160, 44)
    for name, there, absent in (("right.png", green, red), ("wrong.png", red, green)):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert (pixels == there).all(-1).any()
        assert not (pixels == absent).all(-1).any()


def test_scores_are_drawn_with_what_is_not_finite_left_out(tmp_path):
    curve = {"inner steps": [0, 5], "mean": [0.2, None], "ci95": [0.1, None]}
    plots.scores(tmp_path / "scores.png", "accuracy", {"Reptile": {"one": curve, "two": curve}})
    assert colours(tmp_path / "scores.png") > 50
