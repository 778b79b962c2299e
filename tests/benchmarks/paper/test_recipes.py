"""The recipes differ from the paper's rows in what their names say."""

import contextlib
import dataclasses
import json
import shlex
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.paper.scoring import PAPER

import reptile_jax as rj
from benchmarks import records
from benchmarks.paper import evaluations, precision, recipe_list, recipes
from reptile_jax.app import presets
from reptile_jax.app.config import FewShotConfig


def test_recipes_see_as_many_images():
    for name, recipe in recipe_list.RECIPES.items():
        preset = "o120" if name.startswith("twenty") else "o15"
        config = recipes.configured(recipe, 2400, preset)
        config.check()
        asked, shown = (
            c.meta_steps * c.meta_batch * c.inner_steps * c.inner_batch
            for c in (dataclasses.replace(presets.PAPER[preset], meta_steps=2400), config)
        )
        assert asked == shown
        assert dataclasses.replace(config, **recipe.changes) == config


def test_evaluations_are_of_configurations_that_can_be():
    for evaluation in evaluations.EVALUATIONS.values():
        dataclasses.replace(presets.PAPER["o120"], **evaluation.changes).check()


def test_later_steps_is_reptile_with_another_weight_on_the_first_update():
    loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
    params, task = jnp.ones(2), rj.Task(jnp.arange(6.0).reshape(3, 2))
    sgd = optax.sgd(0.1)
    compute = lambda w: recipe_list._later_steps(w)(loss_fn, sgd).compute(params, None, task)
    delta = {w: compute(w) for w in (0, 1)}
    whole = rj.reptile(loss_fn, sgd).compute(params, None, task)
    chex.assert_trees_all_close(delta[1], whole, rtol=1e-6)
    first = 0.1 * 2 * (params - task.support[0])
    np.testing.assert_allclose(delta[1].gradient - delta[0].gradient, first, rtol=1e-6)


def image_splits(train_classes, test_classes):
    """Each class is one random picture under noise."""
    draw = np.random.default_rng(0).integers
    pictures, noise = draw(0, 200, (train_classes, 1, 8, 8, 1)), draw(0, 55, (1, 12, 8, 8, 1))
    images = (pictures + noise).astype(np.uint8).reshape(-1, 8, 8, 1)
    classes = lambda n: rj.tasks.ImageClasses(images, np.arange(n) * 12, np.full(n, 12))
    names = lambda n: tuple(map(str, range(n)))
    return rj.datasets.ImageSplits(
        classes(train_classes), classes(test_classes), names(train_classes), names(test_classes)
    )


@pytest.mark.slow
def test_a_training_at_other_ways_is_scored_at_the_asked_ones():
    splits = image_splits(6, 2)  # held-out tasks of five ways could not be drawn
    recipe = recipe_list.Recipe({"classifier": "zero"}, averaged=True)
    config = dataclasses.replace(
        recipes.configured(recipe, 4), size=8, eval_steps=20, steps_per_dispatch=1, save_every=2
    )
    row = dataclasses.replace(presets.PAPER["o15"], ways=2)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        state = recipes.trained(recipe, config, splits)
        how = {"splits": splits, "row": row, "num_tasks": 20}
        found = recipes.score_of(recipe, config, state, PAPER, **how)
    assert all(70 < accuracy <= 100 for accuracy in found["accuracy"].values())


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    splits = image_splits(6, 2)
    recipe = recipe_list.Recipe({"classifier": "zero"}, averaged=True)
    config = dataclasses.replace(
        recipes.configured(recipe, 6), size=8, steps_per_dispatch=1, save_every=2
    )
    with jax.numpy_dtype_promotion("standard"):
        whole = recipes.trained(recipe, config, splits, tmp_path / "whole")
        for step in (4, 6):  # the checkpoints that are left
            assert (tmp_path / "whole" / "checkpoints" / str(step)).is_dir()
        shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "6")
        again = recipes.trained(recipe, config, splits, tmp_path / "stopped")
    chex.assert_trees_all_equal(whole, again)


@pytest.mark.parametrize(
    ("bench", "record", "words"),
    [
        (recipes, "recipes_o15_1000", "--only 'the paper' 'balanced batches'"),
        (precision, "precision_o15_1000", ""),
        (evaluations, "evaluations_o120_1000", "--preset o120 --tasks 200 --only balanced"),
    ],
)
def test_what_is_published_is_found_again(bench, record, words, tmp_path, monkeypatch):
    """With settings that are younger than it; nothing is trained or scored again."""
    path = tmp_path / "paper" / f"{record}.json"
    path.parent.mkdir()
    shutil.copy(records.RESULTS / "paper" / path.name, path)
    arms = records.read(path)["arms"]
    monkeypatch.setattr(rj.datasets, "load_omniglot", lambda folder: None)
    monkeypatch.setattr(bench, "set_apart", lambda splits, characters: None)
    monkeypatch.setattr(recipes, "trained", lambda *_: None)
    monkeypatch.setattr(recipes, "score_of", lambda *_, **__: pytest.fail("scored again"))
    assert bench.main(["--data", "DIR", "--out", str(tmp_path), *shlex.split(words)]) == 0
    assert records.read(path)["arms"] == arms


def test_a_folder_is_of_one_training(tmp_path):
    config, recipe, folder = FewShotConfig(), recipe_list.Recipe(), tmp_path / "a"
    keep = lambda: recipes._keep_settings(recipe, config, folder)
    keep()
    (folder / "checkpoints").mkdir()
    settings = json.loads((folder / "settings.json").read_text())
    del settings["mirrored"]  # a field that is younger than the training
    (folder / "settings.json").write_text(json.dumps(settings))
    keep()
    for other in (
        (recipe, dataclasses.replace(config, seed=1)),
        (recipe, dataclasses.replace(config, inner_rate=0.1)),
        (dataclasses.replace(recipe, averaged=True), config),
    ):
        with pytest.raises(ValueError, match="a is another training: give another --runs"):
            recipes.trained(*other, None, folder)
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="a is another training"):
        keep()


def test_a_fresh_training_has_a_folder_of_its_own(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(recipes, "trained", lambda r, c, s, folder, mesh: used.append(folder))
    monkeypatch.setattr(recipes, "score_of", lambda *_, **__: {})
    monkeypatch.setattr(recipes.trainings, "training_seconds", lambda folder: folder.mkdir())
    for fresh in (True, True, False):
        words = ["--data", "DIR", "--runs", str(tmp_path), *(["--fresh"] if fresh else [])]
        args = recipes._arguments(words)
        (tmp_path / "o15-1000").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            recipes.tried("the paper", args, None)
    assert [folder.name for folder in used] == ["the-paper", "the-paper-2", "the-paper"]


def test_a_classifier_left_as_initialised_stays_and_the_rest_moves():
    init = jax.jit(rj.nn.omniglot_net(5).init)
    params = init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    outer = recipe_list._classifier_as_initialised(FewShotConfig(size=8, meta_steps=2))
    updates, _ = outer.update(jax.tree.map(jnp.ones_like, params), outer.init(params), params)
    moved = optax.apply_updates(params, updates)["params"]
    chex.assert_trees_all_equal(moved["Dense_0"], params["params"]["Dense_0"])
    kernel = params["params"]["Conv_0"]["kernel"]
    np.testing.assert_allclose(moved["Conv_0"]["kernel"], kernel - 1, rtol=1e-6)


def test_parameters_lose_a_share_of_themselves_at_every_inner_step():
    config = FewShotConfig(inner_rate=0.1)
    inner = recipe_list._inner_decay(0.01)(config)
    params = jnp.array([10.0, 2.0])
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        updates, _ = inner.update(jnp.array([1.0, 0.0]), inner.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 - 0.1, -0.02], rtol=1e-4)


def test_an_inner_rate_is_annealed_over_all_inner_steps_and_ends_at_the_presets():
    config = FewShotConfig(meta_steps=2, inner_steps=2, inner_rate=0.01)
    inner = recipe_list._inner_from(0.03)(config)
    state, rates = inner.init(jnp.zeros(())), []
    for _ in range(6):
        # The first moment is off and the gradient constant, so an update is the rate.
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            update, state = inner.update(jnp.ones(()), state)
        rates.append(-float(update))
    np.testing.assert_allclose(rates, [0.03, 0.025, 0.02, 0.015, 0.01, 0.01], rtol=1e-4)
