"""Few-shot images, end to end and small, and the parts that a configuration stands for."""

import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reptile_jax as rj
from reptile_jax.app import cli, json_files, run_folder
from reptile_jax.app.config import FewShotConfig, precise
from reptile_jax.app.experiments import few_shot
from tests.app import small_images
from tests.app.stopping import stop_at


def test_train_images_learns_and_scores(trained):
    accuracy = json.loads((trained / "results.json").read_text())["scores"]["Reptile"]
    assert accuracy["non-transductive"]["inner steps"] == [0, 1, 2, 3, 4, 5]
    assert accuracy["non-transductive"]["mean"][-1] > 0.75


@pytest.mark.slow
def test_evaluate_scores_the_run_again(run, pictures, capsys):
    in_training = json.loads((run / "results.json").read_text())["scores"]
    assert cli.main(["evaluate", str(run), "--data", str(pictures)]) == 0
    assert json.loads((run / "evaluation.json").read_text())["scores"] == in_training
    argv = ["--eval-tasks", "7", "--shots", "1", "--eval-batch", "2"]
    assert cli.main(["evaluate", str(run), "--data", str(pictures), *argv]) == 0
    assert "over 7 held-out tasks, 2-way 1-shot, after 40 meta steps" in capsys.readouterr().out
    assert json.loads((run / "evaluation-2.json").read_text())["tasks"] == 7
    argv = ["--eval-tasks", "7", "--inner-rate", "0"]
    assert cli.main(["evaluate", str(run), "--data", str(pictures), *argv]) == 0
    left_alone = json.loads((run / "evaluation-3.json").read_text())["scores"]["Reptile"]
    assert len(set(left_alone["non-transductive"]["mean"])) == 1


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    trained, pictures, tmp_path, monkeypatch, capsys
):
    argv = small_images.train_command(pictures, "--meta-steps", "40", "--out", "a run")
    with monkeypatch.context() as patched:
        stop_at(24, signal.SIGTERM, patched)
        assert cli.main(argv) == 143
    stopped = "stopped at meta step 24; go on with: reptile-jax train --resume 'a run' --data DIR\n"
    assert capsys.readouterr().err == f"reptile-jax: {stopped}"
    assert cli.main(["train", "--resume", "a run"]) == 1
    assert "a run of images: give the data set's folder with --data" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "a run", "--data", str(pictures)]) == 0
    metrics = (tmp_path / "a run" / "metrics.jsonl").read_text()
    assert metrics == (trained / "metrics.jsonl").read_text()
    assert len(metrics.splitlines()) == 5
    first_state = few_shot.learned_by(run_folder.load_config(trained)).first_state
    states = [run_folder.restore(run, first_state) for run in (trained, tmp_path / "a run")]
    chex.assert_trees_all_equal(*states)


@pytest.mark.slow
def test_a_signal_during_evaluation_leaves_and_resuming_only_evaluates(
    trained, run, pictures, monkeypatch, capsys
):
    argv = ["train", "--resume", "run", "--data", str(pictures)]
    with monkeypatch.context() as patched:
        patched.setattr(rj, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        assert cli.main(argv) == 143
    interrupted = "interrupted; go on with: reptile-jax train --resume run --data DIR\n"
    assert capsys.readouterr().err == f"reptile-jax: {interrupted}"
    assert not (run / "results-2.json").exists()
    assert cli.main(argv) == 0
    one, other = (
        json.loads((run / f"{name}.json").read_text()) for name in ("results", "results-2")
    )
    assert one["scores"] == other["scores"]
    for name in ("metrics.jsonl", "times.jsonl"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow
def test_a_classifier_at_zero_is_one_for_any_number_of_ways(pictures, tmp_path, capsys):
    argv = ["--classifier", "zero", "--test-fraction", "0.5", "--meta-steps", "40"]
    argv += ["--balanced-batches"]  # of two classes in training; evaluation has its own rule
    assert cli.main(small_images.train_command(pictures, *argv, "--out", "zero")) == 0
    argv = ["--eval-ways", "4", "--eval-batch", "7", "--eval-steps", "20"]
    assert cli.main(["evaluate", "zero", "--data", str(pictures), *argv]) == 0
    results = json.loads((tmp_path / "zero" / "evaluation.json").read_text())
    means = results["scores"]["Reptile"]["non-transductive"]["mean"]
    assert means[0] == 0.25  # all logits are zero, and one class in four comes first
    assert means[-1] > 0.7
    assert results["config"]["ways"] == 2
    assert results["config"]["eval_ways"] == 4
    first_state = few_shot.learned_by(run_folder.load_config(Path("zero"))).first_state
    two = run_folder.restore(Path("zero"), first_state)
    four = few_shot.for_ways(4, two)
    for one, other in zip(*map(jax.tree.leaves, (two, four)), strict=True):
        if one.shape == other.shape:
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one.mean(-1), other.mean(-1), rtol=1e-6)
            assert other.shape == (*one.shape[:-1], 4)
    support, query = tmp_path / "support", tmp_path / "query"
    query.mkdir()
    for number in (1, 4, 6):
        files = sorted((pictures / f"class{number}").iterdir())
        (support / f"class{number}").mkdir(parents=True)
        shutil.copy(files[-1], query / f"class{number}.png")
        for file in files[:4]:
            shutil.copy(file, support / f"class{number}")
    capsys.readouterr()
    argv = ["--query", str(query), "--json", "-"]
    assert cli.main(["adapt", "zero", "--support", str(support), "--save", "model", *argv]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [len(answer["probabilities"]) for answer in answers] == [3, 3, 3]
    assert [answer["class"] for answer in answers] == ["class1", "class4", "class6"]
    assert cli.main(["predict", "model", *argv]) == 0
    assert json.loads(capsys.readouterr().out) == answers


@pytest.mark.slow
def test_prototypes_start_tasks_of_any_number_of_ways(pictures, tmp_path, capsys):
    argv = ["--classifier", "prototypes", "--balanced-batches", "--test-fraction", "0.5"]
    argv += ["--train-shots", "4", "--meta-steps", "8", "--eval-ways", "3", "--eval-batch", "6"]
    assert cli.main(small_images.train_command(pictures, *argv, "--out", "run")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["config"]["ways"], results["config"]["eval_ways"]) == (2, 3)
    for curve in results["scores"]["Reptile"].values():
        assert curve["mean"][0] > 0.6  # before the first inner step
    shown = np.load(tmp_path / "run" / "adaptation.npz")["Reptile/probabilities"]
    assert np.abs(shown[:, 0] - 1 / 3).max() > 0.2  # as does the picture

    argv = ["--support", str(pictures), "--query", str(pictures / "class6" / "0.png")]
    capsys.readouterr()
    assert cli.main(["adapt", "run", *argv, "--save", "model", "--json", "-"]) == 0
    (answer,) = answers = json.loads(capsys.readouterr().out)
    assert len(answer["probabilities"]) == 8
    assert answer["class"] == "class6"
    assert cli.main(["predict", "model", *argv[2:], "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == answers


def copied(pictures, folder, numbers, prefix="class"):
    """Some classes of the pictures in another folder."""
    for number in numbers:
        shutil.copytree(pictures / f"class{number}", folder / f"{prefix}{number}")
    return folder


def scored(run, data, *more):
    """The results of an evaluation on other data."""
    assert cli.main(["evaluate", str(run), "--data", str(data), *more]) == 0
    return json.loads(
        max(run.glob("evaluation*.json"), key=lambda p: p.stat().st_mtime_ns).read_text()
    )


@pytest.mark.slow
def test_a_run_is_scored_on_another_folder(run, pictures, tmp_path, capsys):
    other = copied(pictures, tmp_path / "other", range(5), "bar")
    (other / "bar0" / "notes.txt").write_bytes(b"")
    results = scored(run, other)
    assert results["scores"]["Reptile"]["non-transductive"]["mean"][-1] > 0.75
    assert results["data"] == str(other)
    said = "5 held-out classes; 1 file left out: 1 .txt; such as bar0/notes.txt"
    assert said in capsys.readouterr().out
    for path in other.glob("*/[3-5].png"):  # fewer images than training asks for
        path.unlink()
    assert scored(run, other, "--shots", "1", "--query-shots", "2", "--eval-batch", "2")
    argv = ["evaluate", str(run), "--data", str(other)]
    assert cli.main(argv) == 1
    assert "fewer than min_images=4 images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_scored_on_classes_that_were_held_out_from_it(run, pictures, tmp_path):
    names = json_files.read_json(run / "classes.json")
    held_out = copied(pictures, tmp_path / "held", [name[-1] for name in names["test"]])
    own = json.loads((run / "results.json").read_text())["scores"]
    assert scored(run, held_out)["scores"] == own
    copied(pictures, tmp_path / "held", ["1"], "another")
    assert scored(run, held_out)["scores"] != own


@pytest.mark.slow
def test_of_a_folder_that_is_split_the_test_classes_are_scored(run, pictures, tmp_path, capsys):
    names = json_files.read_json(run / "classes.json")
    for split, chosen in names.items():
        copied(pictures, tmp_path / "split" / split, [name[-1] for name in chosen])
    own = json.loads((run / "results.json").read_text())["scores"]
    assert scored(run, tmp_path / "split")["scores"] == own
    argv = small_images.train_command(tmp_path / "split", "--meta-steps", "8", "--out", "b")
    assert cli.main(argv) == 0
    assert json_files.read_json(Path("b/classes.json")) == names
    assert "6 training and 2 held-out classes" in capsys.readouterr().out


def test_classes_that_a_run_was_trained_on_are_not_scored(run, pictures, tmp_path, capsys):
    other = shutil.copytree(pictures, tmp_path / "other")
    shutil.copytree(other / "class0", other / "class8")
    assert cli.main(["evaluate", str(run), "--data", str(other)]) == 1
    error = capsys.readouterr().err
    assert f"was trained on 6 of these classes in {other}: class" in error
    assert " and 1 more. Give a folder without them." in error
    assert not list(run.glob("evaluation*"))


@pytest.mark.slow
def test_a_run_on_omniglot_is_scored_on_a_folder_of_images(run, pictures, tmp_path, capsys):
    """Such a run's own data set is not at hand; what is different is how the folder is found."""
    fields = json_files.read_json(run / "config.json")
    fields.update(experiment="omniglot", dataset="omniglot", size=16)
    (run / "config.json").write_text(json.dumps(fields))
    (run / "classes.json").write_text(json.dumps({"train": ["Greek/character01"], "test": []}))
    results = scored(run, pictures)
    assert results["scores"]["Reptile"]["non-transductive"]["mean"][-1] > 0.75
    (run / "classes.json").write_text(json.dumps({"train": ["class3"], "test": []}))
    assert cli.main(["evaluate", str(run), "--data", str(pictures)]) == 1
    error = capsys.readouterr().err
    assert f"was trained on 1 of these classes in {pictures}: class3. " in error
    assert "(It cannot be read as omniglot: Omniglot is not complete" in error
    for place in (tmp_path / "none", pictures / "class0"):
        assert cli.main(["evaluate", str(run), "--data", str(place)]) == 1
        assert "Omniglot is not complete in" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_with_balanced_mini_batches(run, pictures, capsys):
    argv = ["evaluate", "run", "--data", str(pictures), "--balanced-eval", "True"]
    assert cli.main([*argv, "--eval-batch", "3"]) == 1
    assert "eval_batch is a multiple of the ways, got 3" in capsys.readouterr().err
    assert cli.main([*argv, "--eval-batch", "2"]) == 0
    results = json.loads((run / "evaluation.json").read_text())
    assert results["config"]["balanced_eval"]
    assert results["scores"]["Reptile"]["transductive"]["mean"][-1] > 0.7


def test_a_meta_learned_classifier_keeps_its_ways(trained, pictures, capsys):
    assert cli.main(["evaluate", str(trained), "--data", str(pictures), "--eval-ways", "1"]) == 1
    said = "the classifier is meta-learned with the rest, for 2 ways: held-out tasks have 2 classes"
    error = capsys.readouterr().err
    assert f"{said}, not 1." in error
    assert "A run trained with --classifier zero or prototypes takes any number." in error


def test_a_damaged_zip_is_named(tmp_path, capsys):
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    assert cli.main(["train", "omniglot", "--data", str(tmp_path)]) == 1
    assert "images_background.zip is damaged" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_sizes_that_cannot_be_met_are_found_before_training(pictures, capsys, tmp_path):
    assert cli.main(small_images.train_command(pictures, "--ways", "7")) == 1
    error = capsys.readouterr().err
    assert "7 ways, but there are only 2 held-out classes: give fewer ways (--ways)" in error
    assert "a larger --test-fraction" in error
    argv = small_images.train_command(pictures, "--test-fraction", "0.7", "--ways", "3")
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "3 ways, but there are only 2 training classes" in error
    assert "a smaller --test-fraction" in error
    assert cli.main(small_images.train_command(pictures, "--train-shots", "9")) == 1
    error = capsys.readouterr().err
    assert "class4 (6) and 3 more" in error
    assert "use fewer shots (--train-shots, or --shots and --query-shots)" in error
    argv = small_images.train_command(pictures, "--inner-opt-state", "carry")
    assert cli.main([*argv, "--devices", "2"]) == 1
    assert '"carry" runs one task after another' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_carried_state_is_scored_on_many_devices(run, pictures):
    """Training with it runs on one device; an evaluation starts every task from the same state."""
    fields = json_files.read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**fields, "inner_opt_state": "carry"}))
    assert cli.main(["evaluate", "run", "--data", str(pictures), "--devices", "2"]) == 0
    one, other = (json.loads((run / f"{n}.json").read_text()) for n in ("results", "evaluation"))
    assert one["scores"] == other["scores"]
    argv = ["train", "--resume", "run", "--data", str(pictures), "--devices", "2"]
    assert cli.main(argv) == 1


def test_a_classifier_at_zero_stays_there_outside_and_learns_inside():
    config = FewShotConfig(size=8, classifier="zero", meta_momentum=0.9, inner_batch=5)
    learned = few_shot.learned_by(config)
    images = jax.random.uniform(jax.random.key(0), (2, 1, 5, 8, 8, 1))
    batch = rj.Batch(images, jnp.broadcast_to(jnp.arange(5), (2, 1, 5)))
    tasks = rj.Task(jax.tree.map(lambda leaf: leaf.repeat(3, axis=1), batch))  # three steps of it
    start = learned.first_state().params["params"]
    state, info = learned.learner.step(learned.first_state(), tasks)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.params["params"]["Dense_0"]))
    assert (state.params["params"]["Conv_0"]["kernel"] != start["Conv_0"]["kernel"]).any()
    np.testing.assert_allclose(info.losses[:, 0], np.log(5), rtol=1e-6)
    assert (info.losses[:, 2] < info.losses[:, 0]).all()


@pytest.mark.slow
def test_training_by_prototypes_leaves_the_classifier_at_zero():
    """The classifier's inner state as well: training gives it no gradient."""
    config = FewShotConfig(
        size=8, classifier="prototypes", ways=3, inner_batch=6, balanced_batches=True
    )
    learned = few_shot.learned_by(config)
    images = jax.random.uniform(jax.random.key(0), (2, 3, 6, 8, 8, 1))
    tasks = rj.Task(rj.Batch(images, jnp.broadcast_to(jnp.arange(6) % 3, (2, 3, 6))))
    state, info = learned.learner.step(learned.first_state(), tasks)
    inner = state.inner_opt_state[0].nu
    for tree in (state.params, inner):
        assert not any(leaf.any() for leaf in jax.tree.leaves(tree["params"]["Dense_0"]))
        assert tree["params"]["Conv_0"]["kernel"].any()
    first = jax.tree.map(lambda leaf: leaf[1, 0], tasks.support)
    loss = jax.jit(rj.nn.prototype_loss(learned.model))(learned.first_state().params, first)
    np.testing.assert_allclose(info.losses[1, 0], loss, rtol=1e-5)


@pytest.mark.parametrize(("size", "balanced", "share"), [(10, False, 0.5), (20, True, 1)])
def test_after_prototypes_one_image_of_each_class_has_the_mean(size, balanced, share):
    """However many classes training's mini-batches had."""
    config = FewShotConfig(ways=60, inner_batch=120, classifier="prototypes", eval_ways=20)
    logits = jax.random.normal(jax.random.key(0), (size, 20))
    model = FixedNet(20, lambda params, inputs: logits)
    batch = rj.Batch(None, jnp.arange(size))
    loss = few_shot.adaptation_loss(config, model, size, balanced=balanced)
    mean = rj.nn.cross_entropy(model.apply)(None, batch)
    np.testing.assert_allclose(loss(None, batch), share * mean, rtol=1e-6)


class FixedNet(NamedTuple):
    """Stands for a network."""

    ways: int
    apply: Callable[..., jax.Array]


@pytest.mark.parametrize(("asked", "precision"), [("tensorfloat32", "HIGH"), (None, "DEFAULT")])
def test_a_precision_is_that_of_all_products_and_convolutions(asked, precision):
    config = FewShotConfig(size=8, inner_steps=1, matmul_precision=asked)
    learned, images = few_shot.learned_by(config), jnp.zeros((2, 1, 10, 8, 8, 1))
    tasks = rj.Task(rj.Batch(images, jnp.zeros(images.shape[:3], jnp.int32)))
    with precise(config.matmul_precision):
        traced = jax.jit(learned.learner.step).trace(learned.first_state(), tasks)
    for platform in ("cpu", "tpu", "cuda"):
        lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
        products = [line for line in lines if re.search(r"= stablehlo\.(dot_|convolution)", line)]
        assert len(products) == 14  # of four convolutions and a classifier, without one's images
        assert all(len(re.findall(rf"\b{precision}\b", line)) == 2 for line in products)


@pytest.mark.slow
def test_a_configurations_tasks_are_balanced_if_it_says_so():
    balanced = lambda tasks, each: (
        np.sort(tasks.sample(jax.random.key(0)).support.targets) == np.arange(5).repeat(each)
    ).all()
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    classes = rj.tasks.ImageClasses(images, np.arange(5) * 12, np.full(5, 12))
    names = tuple("abcde")
    splits = rj.datasets.ImageSplits(classes, classes, names, names)
    for training, evaluation in itertools.product((False, True), repeat=2):
        config = FewShotConfig(size=8, shots=5, balanced_batches=training, balanced_eval=evaluation)
        assert balanced(few_shot.training_tasks(config, splits), 2) == training
        assert balanced(few_shot.held_out_tasks(config, splits), 1) == evaluation


@pytest.mark.slow
def test_large_balanced_mini_batches_make_no_longer_steps_than_training():
    config = FewShotConfig(size=8, inner_batch=10)
    learned = few_shot.learned_by(config)
    params = learned.first_state().params
    for size, balanced, share in [(5, False, 0.5), (5, True, 0.5), (30, False, 3), (30, True, 1)]:
        images = jax.random.uniform(jax.random.key(0), (size, 8, 8, 1))
        batch = rj.Batch(images, jnp.arange(size) % 5)
        loss = few_shot.adaptation_loss(config, learned.model, size, balanced=balanced)
        mean = rj.nn.cross_entropy(learned.model.apply)(params, batch)
        np.testing.assert_allclose(loss(params, batch), share * mean, rtol=1e-5)
