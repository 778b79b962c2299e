"""Adapting to new classes: the answers, the mini-batches, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reptile_jax.app import adapt, cli, run_folder
from reptile_jax.app.config import FewShotConfig


@pytest.fixture
def support(pictures, tmp_path):
    """The folder of a support set of two classes, three images each; `query` has the others."""
    for number in (1, 5):
        images = sorted((pictures / f"class{number}").iterdir())
        for part, chosen in (("support", images[:3]), ("query", images[3:])):
            folder = tmp_path / part / (f"bar{number}" if part == "support" else "")
            folder.mkdir(parents=True, exist_ok=True)
            for image in chosen:
                (folder / f"{number}-{image.name}").write_bytes(image.read_bytes())
    return tmp_path / "support"


@pytest.mark.parametrize("flags", [[], ["--transductive"]])
def test_adapt_names_the_class_of_each_image(trained, support, tmp_path, capsys, flags):
    argv = ["adapt", str(trained), "--support", "support", "--query", "query"]
    assert cli.main([*argv, *flags, "--json", "answers.json"]) == 0
    assert "adapted to 2 classes of support" in capsys.readouterr().out
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 6
    for answer in answers:
        np.testing.assert_allclose(sum(answer["probabilities"].values()), 1, rtol=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
    right = [f"/{answer['class'][-1]}-" in answer["image"] for answer in answers]
    assert sum(right) >= 5
    assert cli.main([*argv, "--json", "answers.json"]) == 1
    assert "answers.json exists" in capsys.readouterr().err
    assert cli.main([*argv, *flags, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == answers
    assert cli.main([*argv, *flags, "--eval-steps", "1", "--eval-batch", "4"]) == 0
    assert "1 mini-batches of 4 images show 4 of the 6 images" in capsys.readouterr().err
    assert cli.main([*argv, *flags, "--eval-steps", "1", "--eval-batch", "1"]) == 1
    assert "show no image of bar" in capsys.readouterr().err


def test_adapting_draws_mini_batches_as_training_did():
    config = FewShotConfig(eval_batch=5, eval_steps=7)
    counts = [1, 4, 2]  # images of each class, class by class
    plain = adapt._mini_batches(config, counts)
    assert plain.shape == (7, 5)
    passes = np.asarray(plain).reshape(5, 7)
    assert (np.sort(passes) == np.arange(7)).all()
    assert (passes != passes[0]).any()
    config = FewShotConfig(eval_batch=7, eval_steps=3, balanced_batches=True)
    balanced = np.asarray(adapt._mini_batches(config, counts))  # two of each
    assert balanced.shape == (3, 6)
    assert (balanced[:, :2] == 0).all()
    assert set(balanced[:2, 2:4].flat) == {1, 2, 3, 4}  # two mini-batches are a pass
    assert (np.sort(balanced[:, 4:]) == [5, 6]).all()
    config = dataclasses.replace(config, eval_batch=1)  # at least one of each
    assert adapt._mini_batches(config, counts).shape == (3, 3)


def test_support_sets_that_the_run_does_not_take_are_refused(trained, support, pictures, capsys):
    argv = ["adapt", str(trained), "--query", "query", "--support"]
    (support / "empty").mkdir()
    assert cli.main([*argv, str(pictures)]) == 1
    assert f"has 8 classes, but {trained} was trained for 2 ways" in capsys.readouterr().err
    shutil.rmtree(support / "bar5")
    assert cli.main([*argv, str(support)]) == 1
    assert f"these classes in {support} have no images: empty" in capsys.readouterr().err
    assert cli.main([*argv, "query"]) == 1
    assert "query has no folders: give one folder of images per class" in capsys.readouterr().err


def test_runs_that_do_not_classify_are_refused(whole, support, capsys):
    assert cli.main(["adapt", str(whole), "--support", str(support), "--query", "query"]) == 1
    assert f"{whole} is not a run on few-shot images" in capsys.readouterr().err


def test_values_that_cannot_be_are_refused(trained, support, capsys):
    argv = ["adapt", str(trained), "--support", str(support), "--query", "query"]
    assert cli.main([*argv, "--eval-steps", "0"]) == 1
    assert "eval_steps is at least 1, got 0" in capsys.readouterr().err


def test_answers_that_are_not_finite_are_refused(trained, support, monkeypatch):
    def restore(*given, restore=run_folder.restore):
        state = restore(*given)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params))

    monkeypatch.setattr(run_folder, "restore", restore)
    with pytest.raises(ValueError, match=r"adapting .*bars to .*support diverged: its answers"):
        adapt.adapt(trained, support, support.parent / "query")


def test_how_held_out_tasks_were_scored_does_not_bind_those_who_adapt(run, support, tmp_path):
    fields = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**fields, "balanced_eval": True}))
    with pytest.raises(ValueError, match="1 mini-batches of 1 images show no image of bar"):
        adapt.adapt(run, support, tmp_path / "query", eval_steps=1, eval_batch=1)
