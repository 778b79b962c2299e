"""The commands, end to end and small: what they leave, what they print, what they refuse."""

import contextlib
import dataclasses
import json
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from reptile_jax import (
    cli,
    fewshot_problem,
    fewshot_run,
    meta_training,
    presets,
    report,
    runs,
    sinusoid_run,
)
from reptile_jax.json_files import append_json_line


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def as_a_person_has_it(programs_kept):
    """Without the tests' strict promotion, which Optax's own arithmetic does not pass."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight classes of grey images: a bar at an angle of its own, in noise."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    for number in range(8):
        angle = np.pi * number / 8
        bar = np.abs(x * np.cos(angle) + y * np.sin(angle)) < 0.3
        (folder / f"class{number}").mkdir(parents=True)
        for image in range(6):
            pixels = np.uint8(120 * bar + rng.integers(0, 60, (16, 16)))
            Image.fromarray(pixels).save(folder / f"class{number}" / f"{image}.png")
    return folder


SMALL = [
    *("--ways", "2", "--shots", "2", "--train-shots", "3", "--inner-batch", "4"),
    *("--inner-steps", "3", "--size", "16", "--color", "grey", "--query-shots", "2"),
    *("--eval-batch", "4", "--eval-steps", "5", "--eval-tasks", "20", "--meta-batch", "2"),
    *("--steps-per-dispatch", "8", "--save-every", "16"),
]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """The folder of a small run on the pictures."""
    out = tmp_path_factory.mktemp("runs") / "bars"
    argv = ["train", "images", "--data", str(pictures), "--out", str(out), "--meta-steps", "40"]
    assert cli.main([*argv, *SMALL]) == 0
    return out


def test_train_sinusoid_leaves_a_whole_run(capsys, tmp_path):
    argv = ["--meta-steps", "30", "--eval-tasks", "20", "--steps-per-dispatch", "20"]
    assert cli.main(["train", "sinusoid", *argv]) == 0
    run = tmp_path / "runs" / "sinusoid"
    config = json.loads((run / "config.json").read_text())
    assert config["kind"] == "sinusoid"
    assert config["meta_steps"] == 30
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 30]
    assert rows[-1]["tasks_left_out"] == 0
    assert all(0 < row["last_loss"] < 10 for row in rows)
    with Image.open(run / "adaptation.png") as picture:
        assert picture.width > 1000
    results = json.loads((run / "results.json").read_text())
    errors = results["mean squared error"]
    assert set(errors) == {"Reptile", "random", "joint training"}
    assert errors["Reptile"]["steps"] == [0, 1, 2, 4, 8, 16, 32]
    assert errors["Reptile"]["mean"][-1] < errors["Reptile"]["mean"][0]
    printed = capsys.readouterr().out
    first = f"{errors['Reptile']['mean'][0]:.3f} ± {errors['Reptile']['interval'][0]:.3f}"
    assert first in printed
    assert "30/30 meta steps" in printed


def test_serial_is_one_flag_away(tmp_path):
    argv = ["--serial", "--meta-steps", "5", "--eval-tasks", "2", "--out", "serial"]
    assert cli.main(["train", "sinusoid", *argv]) == 0
    config = json.loads((tmp_path / "serial" / "config.json").read_text())
    assert (config["meta_batch"], config["meta_rate"]) == (1, 0.1)


def test_train_images_learns_and_scores(trained):
    accuracy = json.loads((trained / "results.json").read_text())["accuracy"]
    assert accuracy["non-transductive"]["inner steps"] == [0, 1, 2, 3, 4, 5]
    assert accuracy["non-transductive"]["mean"][-1] > 0.75


def test_evaluate_scores_the_run_again(trained, pictures, capsys):
    in_training = json.loads((trained / "results.json").read_text())["accuracy"]
    assert cli.main(["evaluate", str(trained), "--data", str(pictures)]) == 0
    assert json.loads((trained / "evaluation.json").read_text())["accuracy"] == in_training
    argv = ["--eval-tasks", "7", "--shots", "1", "--eval-batch", "2"]
    assert cli.main(["evaluate", str(trained), "--data", str(pictures), *argv]) == 0
    assert "over 7 held-out tasks, 2-way 1-shot, after 40 meta steps" in capsys.readouterr().out
    assert json.loads((trained / "evaluation-2.json").read_text())["tasks"] == 7
    argv = ["--eval-tasks", "7", "--inner-rate", "0"]
    assert cli.main(["evaluate", str(trained), "--data", str(pictures), *argv]) == 0
    left_alone = json.loads((trained / "evaluation-3.json").read_text())["accuracy"]
    assert len(set(left_alone["non-transductive"]["mean"])) == 1


def stop_at(step, number, monkeypatch):
    """Sends a signal at a meta step, and leaves a broken line in the metrics."""

    def stop(path, row, write=append_json_line):
        write(path, row)
        if path.name == "metrics.jsonl" and row["step"] == step:
            with path.open("a") as cut_short:
                cut_short.write('{"step": 3')
            signal.raise_signal(number)

    monkeypatch.setattr(meta_training, "append_json_line", stop)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    trained, pictures, tmp_path, monkeypatch, capsys
):
    argv = ["train", "images", "--data", str(pictures), *SMALL, "--meta-steps", "40"]
    argv += ["--out", "a run"]
    with monkeypatch.context() as patched:
        stop_at(24, signal.SIGTERM, patched)
        assert cli.main(argv) == 143
    stopped = "stopped at meta step 24; go on with: reptile-jax train --resume 'a run' --data DIR\n"
    assert capsys.readouterr().err == f"reptile-jax: {stopped}"
    assert cli.main(["train", "--resume", "a run"]) == 1
    assert "a run on images: give the data set's folder with --data" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "a run", "--data", str(pictures)]) == 0
    metrics = (tmp_path / "a run" / "metrics.jsonl").read_text()
    assert metrics == (trained / "metrics.jsonl").read_text()
    assert len(metrics.splitlines()) == 5
    problem = fewshot_problem.problem_of(runs.load_config(trained))
    states = [runs.restore(run, problem) for run in (trained, tmp_path / "a run")]
    chex.assert_trees_all_equal(*states)


@pytest.mark.slow
def test_sine_waves_that_were_stopped_go_on_without_data(tmp_path, monkeypatch, capsys):
    argv = ["train", "sinusoid", "--meta-steps", "30", "--eval-tasks", "20", "--tensorboard"]
    argv += ["--steps-per-dispatch", "10", "--save-every", "20", "--out"]
    assert cli.main([*argv, "whole"]) == 0
    assert len(list(tmp_path.glob("whole/tensorboard/events*"))) == 1
    with monkeypatch.context() as patched:
        stop_at(10, signal.SIGINT, patched)
        assert cli.main([*argv, "run"]) == 130
    stopped = "stopped at meta step 10; go on with: reptile-jax train --resume run\n"
    assert capsys.readouterr().err == f"reptile-jax: {stopped}"
    assert cli.main(["train", "--resume", "run", "--data", "data"]) == 1
    assert "run on the sine waves, which takes no --data" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run"]) == 0
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert (whole / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    problem = sinusoid_run.problem_of(runs.load_config(run))
    chex.assert_trees_all_equal(*(runs.restore(folder, problem) for folder in (whole, run)))
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, run))
    assert one["mean squared error"] == other["mean squared error"]


def test_a_signal_during_evaluation_leaves_and_resuming_only_evaluates(
    trained, pictures, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained, tmp_path / "run")
    argv = ["train", "--resume", "run", "--data", str(pictures)]
    with monkeypatch.context() as patched:
        patched.setattr(
            fewshot_run.evaluate, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
        )
        assert cli.main(argv) == 143
    interrupted = "interrupted; go on with: reptile-jax train --resume run --data DIR\n"
    assert capsys.readouterr().err == f"reptile-jax: {interrupted}"
    assert not (tmp_path / "run" / "results-2.json").exists()
    assert cli.main(argv) == 0
    one, other = (
        json.loads((tmp_path / "run" / name).read_text())
        for name in ("results.json", "results-2.json")
    )
    assert one["accuracy"] == other["accuracy"]
    for name in ("metrics.jsonl", "times.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


def test_the_package_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reptile_jax", "presets"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("reptile_jax", run_name="__main__")
    assert left.value.code == 0
    assert "The paper's rows" in capsys.readouterr().out


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = lambda: jax.config.jax_compilation_cache_dir
    given = folder()
    try:
        assert cli.main(["presets"]) == 0
        assert folder() == given  # of the user's own choice
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_enable_compilation_cache", False)
        assert cli.main(["presets"]) == 0
        assert folder() is None
        assert not (tmp_path / "cache").exists()
        jax.config.update("jax_enable_compilation_cache", True)
        (tmp_path / "cache").write_text("a file, where no folder can be made")
        assert cli.main(["presets"]) == 0
        assert folder() is None
        (tmp_path / "cache").unlink()
        assert cli.main(["presets"]) == 0
        assert folder() == str(tmp_path / "cache" / "reptile_jax")
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", given)


@pytest.mark.parametrize("out", ["file/run", "/proc/run"])
def test_a_place_where_nothing_can_be_written_is_named(out, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["train", "sinusoid", "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reptile-jax: {out}: ")
    assert error.count("\n") == 1


def test_a_run_without_a_checkpoint_starts_over(trained, pictures, tmp_path):
    never_saved = shutil.ignore_patterns("checkpoints", "times.jsonl", "results.json")
    shutil.copytree(trained, tmp_path / "run", ignore=never_saved)
    assert cli.main(["train", "--resume", "run", "--data", str(pictures)]) == 0
    one, other = ((run / "metrics.jsonl").read_text() for run in (trained, tmp_path / "run"))
    assert one == other


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(trained, pictures, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert cli.main(["train", "--resume", "run", "--data", str(pictures)]) == 1
    assert "had checkpoints: put them back, or start a new run" in capsys.readouterr().err
    one, other = ((run / "metrics.jsonl").read_text() for run in (trained, tmp_path / "run"))
    assert one == other


@pytest.mark.parametrize("flags", [[], ["--transductive"]])
def test_adapt_names_the_class_of_each_image(trained, pictures, tmp_path, capsys, flags):
    for number in (1, 5):
        images = sorted((pictures / f"class{number}").iterdir())
        for part, chosen in (("support", images[:3]), ("query", images[3:])):
            folder = tmp_path / part / (f"bar{number}" if part == "support" else "")
            folder.mkdir(parents=True, exist_ok=True)
            for image in chosen:
                (folder / f"{number}-{image.name}").write_bytes(image.read_bytes())
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


def test_download_shows_where_the_files_are(monkeypatch, tmp_path, capsys):
    def download_omniglot(out, *, report):
        report("images_background.zip", 5, None)
        report("images_background.zip", 10, 10)
        return (out / "images_background.zip",)

    monkeypatch.setattr(cli.download, "download_omniglot", download_omniglot)
    assert cli.main(["download", "omniglot", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "images_background.zip")


def test_a_classifier_at_zero_is_one_for_any_number_of_ways(pictures, tmp_path, capsys):
    argv = [*SMALL, "--classifier", "zero", "--test-fraction", "0.5", "--meta-steps", "40"]
    argv += ["--balanced-batches"]  # of two classes in training; evaluation has its own rule
    assert cli.main(["train", "images", "--data", str(pictures), *argv, "--out", "zero"]) == 0
    argv = ["--ways", "4", "--eval-batch", "7", "--eval-steps", "20"]
    assert cli.main(["evaluate", "zero", "--data", str(pictures), *argv]) == 0
    results = json.loads((tmp_path / "zero" / "evaluation.json").read_text())
    means = results["accuracy"]["non-transductive"]["mean"]
    assert means[0] == 0.25  # all logits are zero, and one class in four comes first
    assert means[-1] > 0.7
    assert results["config"]["ways"] == 4
    config = runs.load_config(Path("zero"))
    (_, two), (_, four) = (
        fewshot_run._restore(Path("zero"), dataclasses.replace(config, ways=ways))
        for ways in (2, 4)
    )
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
    argv = ["--support", str(support), "--query", str(query), "--json", "-"]
    assert cli.main(["adapt", "zero", *argv]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [len(answer["probabilities"]) for answer in answers] == [3, 3, 3]
    assert [answer["class"] for answer in answers] == ["class1", "class4", "class6"]


def test_adapting_draws_mini_batches_as_training_did():
    config = presets.FewShotImages(eval_batch=5, eval_steps=7)
    counts = [1, 4, 2]  # images of each class, which stand class by class
    plain = fewshot_run._adaptation_order(config, counts)
    assert plain.shape == (7, 5)
    passes = np.asarray(plain).reshape(5, 7)
    assert (np.sort(passes) == np.arange(7)).all()
    assert (passes != passes[0]).any()
    config = presets.FewShotImages(eval_batch=7, eval_steps=3, balanced_batches=True)
    balanced = np.asarray(fewshot_run._adaptation_order(config, counts))  # two of each
    assert balanced.shape == (3, 6)
    assert (balanced[:, :2] == 0).all()
    assert set(balanced[:2, 2:4].flat) == {1, 2, 3, 4}  # two mini-batches are a pass
    assert (np.sort(balanced[:, 4:]) == [5, 6]).all()
    config = dataclasses.replace(config, eval_batch=1)  # at least one of each
    assert fewshot_run._adaptation_order(config, counts).shape == (3, 3)


def test_an_evaluation_with_balanced_mini_batches(trained, pictures, tmp_path, capsys):
    never_scored = shutil.ignore_patterns("evaluation*.json")
    shutil.copytree(trained, tmp_path / "run", ignore=never_scored)
    argv = ["evaluate", "run", "--data", str(pictures), "--balanced-eval", "True"]
    assert cli.main([*argv, "--eval-batch", "3"]) == 1
    assert "eval_batch is a multiple of ways, got 3" in capsys.readouterr().err
    assert cli.main([*argv, "--eval-batch", "2"]) == 0
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert results["config"]["balanced_eval"]
    assert results["accuracy"]["transductive"]["mean"][-1] > 0.7


def test_a_meta_learned_classifier_keeps_its_ways(trained, pictures, capsys):
    assert cli.main(["evaluate", str(trained), "--data", str(pictures), "--ways", "1"]) == 1
    assert "trained for 2 ways, and its classifier is meta-learned" in capsys.readouterr().err


def test_presets_are_the_papers_rows_and_what_goes_beyond(capsys):
    assert cli.main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert set(presets.PAPER) == {
        name + mode for name in ("o15", "o55", "o120", "o520", "m15", "m55") for mode in ("", "t")
    }
    for name in presets.PAPER:
        assert f" {name} " in printed
    gradients = lambda config: config.meta_steps * config.meta_batch * config.inner_steps
    shares = {
        name: gradients(config) / gradients(presets.PAPER[name.partition("-")[0]])
        for name, config in presets.BEYOND.items()
    }
    assert shares == {
        "o120-balanced-tenth": 0.1,
        "o15-balanced": 1,
        "o15-balanced-quarter": 0.25,
        "o15-zero-pairs": 0.25,
    }
    changes = "inner_rate=0.004, classifier=zero, meta_batch=2, meta_steps=62500"
    assert f"o15-zero-pairs: o15 with {changes}" in printed.replace("\n", " ")
    assert "o120-balanced-tenth: o120 with balanced_batches=True, inner_rate=0.002" in printed
    assert presets.PAPER["o520t"] == presets.FewShotImages(
        ways=20,
        shots=5,
        inner_batch=20,
        inner_steps=10,
        inner_rate=5e-4,
        meta_steps=200_000,
        eval_batch=10,
        transductive=True,
    )
    m55 = presets.PAPER["m55"]
    assert (m55.inner_steps, m55.train_shots, m55.eval_batch, m55.size) == (8, 15, 15, 84)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "there is no command 'fly'"),
        (["train"], "train what? sinusoid, omniglot, mini-imagenet, images, or --preset"),
        (["train", "--preset", "o16", "--data", "."], "--preset is one of m15, m15t,"),
        (
            ["train", "omniglot", "--preset", "m15", "--data", "."],
            "m15 is for mini-imagenet",
        ),
        (["train", "sinusoid", "--preset", "o15"], "preset o15 is for omniglot, not sinusoid"),
        (["train", "omniglot", "--data", "nothing", "--out", "/"], "a run is never overwritten"),
        (["train", "omniglot", "--data", "nothing", "--test-fraction", "0.5"], "for images alone"),
        (
            ["adapt", "run", "--support", "s", "--query", "q", "--json", "no/a.json"],
            "there is no folder no for --json",
        ),
        (["train", "omniglot", "--data", "nothing"], "reptile-jax download omniglot --out nothing"),
        (["train", "images", "--data", "nothing"], "there is no folder nothing"),
        (["evaluate", "nothing", "--data", "."], "nothing is not the folder of a run"),
        (["download", "imagenet"], "Only omniglot can be fetched"),
        (["presets", "o15"], "presets takes no arguments, got o15"),
    ],
)
def test_mistakes_are_one_clear_line(argv, message, capsys):
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_is_never_overwritten(trained, pictures, capsys):
    config = (trained / "config.json").read_bytes()
    argv = ["train", "images", "--data", str(pictures), "--out", str(trained), *SMALL]
    assert cli.main(argv) == 1
    assert "a run is never overwritten" in capsys.readouterr().err
    assert (trained / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["--save-every", "0"], "save_every is at least 1, got 0"),
        (["--eval-tasks", "1"], "eval_tasks is at least 2, got 1"),
        (["--meta-steps", "0"], "meta_steps is at least 1, got 0"),
        (["--meta-batch", "-3"], "meta_batch is at least 1, got -3"),
        (["--inner-rate", "nan"], "inner_rate is a finite number, got nan"),
        (["--meta-momentum", "1.5"], "meta_momentum is between 0 and 1, got 1.5"),
        (["--balanced-batches", "--inner-batch", "3"], "inner_batch is a multiple of ways, got 3"),
        (["--split", "background"], "split is for omniglot alone"),
        (["--dataset", "omniglot"], "--dataset is what follows train: train omniglot"),
    ],
)
def test_values_that_could_only_fail_later_are_refused(values, message, pictures, capsys, tmp_path):
    assert cli.main(["train", "images", "--data", str(pictures), *SMALL, *values]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_sine_waves_that_cannot_be_drawn_are_refused(capsys, tmp_path):
    assert cli.main(["train", "sinusoid", "--eval-shots", "60"]) == 1
    assert "1 <= shots <= points, got 60 of 50" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_scored_on_the_classes_it_was_trained_on(trained, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    shutil.copytree(other / "class0", other / "class8")
    for command in (["evaluate", str(trained)], ["train", "--resume", str(trained)]):
        assert cli.main([*command, "--data", str(other)]) == 1
        assert "does not split into the classes" in capsys.readouterr().err


def test_names_of_files_are_printed_as_they_are(capsys):
    report.table("a [b]", ["x", "y"], [["[/b]/[red]c.png", "1"]])
    printed = capsys.readouterr().out
    assert "[/b]/[red]c.png" in printed
    assert "a [b]" in printed


def test_words_between_colons_are_printed_as_they_are(capsys):
    report.say("runs/day:a:1")
    assert capsys.readouterr().out == "runs/day:a:1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "said", "status"),
    [("/dev/full", "standard output: No space left on device", 1), ("| true", "", 0)],
)
def test_an_output_that_fails_loses_no_results(output, said, status, trained, pictures, tmp_path):
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    command = f"{sys.executable} -m reptile_jax evaluate run --data {pictures}"
    command += f" {output}" if output.startswith("|") else f" > {output}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == status, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert results["accuracy"]["transductive"]["mean"][-1] > 0.7


def test_results_that_cannot_be_kept_are_shown(trained, pictures, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(runs, "write_json", full)
    assert cli.main(["evaluate", str(trained), "--data", str(pictures)]) == 1
    shown, error = capsys.readouterr()
    assert "the score: " in shown
    assert "evaluation" in error
    assert "No space left on device" in error


@pytest.mark.parametrize("command", ["download", "presets"])
def test_each_command_takes_help(command, capsys):
    with contextlib.suppress(SystemExit):  # as a parser ends
        assert cli.main([command, "--help"]) == 0
    assert f"usage: reptile-jax {command}" in capsys.readouterr().out


def test_json_has_no_nan(tmp_path):
    append_json_line(tmp_path / "x", {"a": float("nan"), "b": [np.float32("inf"), 1]})
    assert json.loads((tmp_path / "x").read_text()) == {"a": None, "b": [None, 1]}


def test_a_damaged_zip_is_named(tmp_path, capsys):
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 half a file")
    assert cli.main(["train", "omniglot", "--data", str(tmp_path)]) == 1
    assert "images_background.zip is damaged" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_sizes_that_cannot_be_met_are_found_before_training(pictures, capsys, tmp_path):
    argv = ["train", "images", "--data", str(pictures), *SMALL, "--ways", "7"]
    assert cli.main(argv) == 1
    assert "ways=7, but there are only 2 held-out classes" in capsys.readouterr().err
    argv = ["train", "images", "--data", str(pictures), *SMALL, "--inner-state", "carried"]
    assert cli.main([*argv, "--devices", "2"]) == 1
    assert 'inner_state="carried" runs one task after another' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
