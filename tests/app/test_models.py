"""The model that a command names, and its export."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.app import adapt, cli, models
from reptile_jax.deploy import tensors


@pytest.mark.slow
def test_the_model_of_a_run_answers_as_adapt_does(trained, pictures):
    model = models.adaptable(trained)
    assert model.card["name"] == "bars"
    assert model.card["meta steps"] == 40
    assert model.card["config"]["dataset"] == "images"
    folders = [pictures / "class1", pictures / "class5"]
    read = lambda files: rj.datasets.read_images(files, size=16, color="grey", resample="bilinear")
    files = [sorted(folder.iterdir()) for folder in folders]
    support, query = read([*files[0][:2], *files[1][:2]]), read([files[0][5], files[1][5]])
    for folder, images in zip(folders, files, strict=True):
        for image in images[:2]:
            Path("support", folder.name).mkdir(parents=True, exist_ok=True)
            Path("support", folder.name, image.name).write_bytes(image.read_bytes())
    answers = adapt.adapt(trained, Path("support"), [files[0][5], files[1][5]])
    predicted = model.predict(support, [0, 0, 1, 1], query)
    expected = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(predicted, expected, atol=1e-5)

    assert cli.main(["export", str(trained), "--out", "bars"]) == 0
    answer = rj.deploy.load("bars")
    exported = answer(np.float32(support) / 255, np.int32([0, 0, 1, 1]), np.float32(query) / 255)
    np.testing.assert_allclose(exported, predicted, atol=1e-5)
    assert json.loads(Path("bars.json").read_text())["card"]["config"]["ways"] == 2


def test_a_model_is_for_the_classes_of_its_runs_evaluation(of_prototypes):
    model = models.adaptable(of_prototypes)
    assert model.ways == 3
    learned = {"params": model.params, "inner_opt_state": model.inner_opt_state}
    again = tensors.loaded(rj.deploy.from_config(model.card["config"]), tensors.saved(learned))
    chex.assert_trees_all_equal(again.params, model.params)
    assert again.ways == 3
    assert jax.eval_shape(model.apply, model.params, np.zeros((2, 8, 8, 1))).shape == (2, 3)
    fitted = jax.tree.map(jnp.shape, model.inner_optimizer.init(model.params))
    assert jax.tree.map(jnp.shape, model.inner_opt_state) == fitted


def test_a_model_shares_its_programs_with_other_starts(of_prototypes):
    model = models.adaptable(of_prototypes)
    programs = lambda model: [
        (leaf.aval, leaf.committed)
        for leaf in jax.tree.leaves((model.params, model.inner_opt_state))
    ]
    assert programs(model) == programs(model.untrained(jax.random.key(0)))


def test_a_folder_comes_before_a_pretrained_model(trained, tmp_path):
    assert models.adaptable("sine-waves").ways is None
    (tmp_path / "sine-waves").symlink_to(trained)
    assert models.adaptable("sine-waves").ways == 2


@pytest.mark.slow
def test_a_run_on_sine_waves(tmp_path):
    run = ["train", "sinusoid", "--meta-steps", "5", "--steps-per-dispatch", "5", "--out", "waves"]
    assert cli.main([*run, "--eval-tasks", "2", "--eval-steps", "2"]) == 0
    model = models.adaptable(Path("waves"))
    assert model.inner_steps == 2
    assert model.inner_opt_state is None
    x = np.ones((3, 1))
    assert model.predict(x, x, x).shape == (3, 1)
    same = rj.pretrained("sine-waves")
    shapes = lambda model: jax.tree.map(lambda leaf: leaf.shape, model.params)
    assert shapes(model) == shapes(same)


def test_what_is_no_model_is_refused(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="there is no run omniglot: give the folder of a"):
        models.adaptable("omniglot")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is not the folder of a run"):
        models.adaptable("empty")
    assert cli.main(["export", "sine-waves", "--out", "a", "--ways", "3"]) == 1
    assert "this model tells no classes apart, not 3" in capsys.readouterr().err
    assert cli.main(["export", "omniglot-5way", "--out", "a", "--ways", "0"]) == 1
    assert "ways is at least 1, got 0" in capsys.readouterr().err
    assert cli.main(["export", "sine-waves", "--out", "a", "--eval-steps", "0"]) == 1
    assert "inner_steps is at least 1, got 0" in capsys.readouterr().err
    assert cli.main(["export", "sine-waves", "--out", "none/a"]) == 1
    assert "none/a: No such file" in capsys.readouterr().err
    assert cli.main(["export", "sine-waves", "--out", "a", "--eval-steps", "3"]) == 0
    assert "sine-waves is in a, with a.json and .safetensors" in capsys.readouterr().out
    assert cli.main(["export", "sine-waves", "--out", "a"]) == 1
    assert "a exists, and no export is overwritten" in capsys.readouterr().err
