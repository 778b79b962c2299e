"""Tomography by neural fields, end to end and small."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import reptile_jax as rj
from reptile_jax.app import cli, experiments
from reptile_jax.app.config import TomographyConfig
from reptile_jax.app.experiments import tomography

SMALL = "--size 8 --features 4 --width 4 --meta-steps 2 --inner-steps 2 --eval-tasks 2".split()


@pytest.mark.slow
def test_train_ct_scores_each_number_of_views_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "ct", *SMALL, "--eval-steps", "10", "--out", "run"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["scores"]) == {"Reptile", "random"}
    for scores in results["scores"].values():
        assert tuple(scores) == ("1 view", "2 views", "4 views", "8 views")
        assert all(scores[name]["inner steps"] == [0, 10] for name in scores)
    with Image.open(tmp_path / "run" / "adaptation.png") as picture:
        assert picture.height > picture.width


@pytest.mark.slow
def test_four_fits_in_one_are_as_each_by_itself():
    config = TomographyConfig(size=8, features=4, width=4, eval_steps=3)
    experiment = experiments.build(config)
    state = experiment.first_state()
    start = experiment.initialisation(state)
    task = experiment.held_out_tasks.sample(jax.random.key(0))
    together = rj.inner_loop(
        experiment.loss_fn,
        experiment.inner_optimizer,
        start.params,
        task.support,
        start.inner_opt_state,
    )
    scores = experiment.score_fn(together.params, task)
    apply = tomography.network(config).apply
    for views, name in zip(tomography.VIEWS, tomography.NAMES, strict=True):
        alone = tomography.few_views(8, views, 3).sample(jax.random.key(0))
        np.testing.assert_array_equal(alone.query.image, task.query.image)
        adapted = rj.inner_loop(
            rj.tasks.projection_loss(apply), experiment.inner_optimizer, state.params, alone.support
        )
        expected = rj.tasks.psnr(apply)(adapted.params, alone)
        np.testing.assert_allclose(scores[name], expected, rtol=1e-4)


def test_ct_that_cannot_be_is_refused(capsys):
    for argv, told in (
        (["--size", "4"], "size is at least 8, got 4"),
        (["--inner-views", "30"], "at most all views: batch_size=30 of views=20"),
        (["--views", "0"], "views is at least 1, got 0"),
    ):
        assert cli.main(["train", "ct", *argv]) == 1
        assert told in capsys.readouterr().err
