"""The commands' options: what they start from, what they take, what they show."""

import contextlib
import dataclasses
import json

import pytest

from reptile_jax import datasets
from reptile_jax.app import cli, commands, presets, runner
from reptile_jax.app.config import SinusoidConfig
from tests.app import small_images


def test_the_serial_setting_is_a_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_run", lambda *_: None)
    argv = ["--preset", "sinusoid-serial", "--meta-steps", "5", "--eval-tasks", "2"]
    assert cli.main(["train", "sinusoid", *argv, "--out", "serial"]) == 0
    config = json.loads((tmp_path / "serial" / "config.json").read_text())
    assert (config["meta_batch"], config["meta_rate"]) == (1, 0.1)
    assert (config["meta_steps"], config["eval_tasks"]) == (5, 2)
    assert cli.main(["train", *argv]) == 0
    assert (tmp_path / "runs" / "sinusoid-serial" / "config.json").is_file()


def test_a_preset_gives_the_start_that_options_change(monkeypatch):
    started = []
    train = lambda config, data, out, *, name, **_: started.append((name, config))
    monkeypatch.setattr(runner, "train", train)
    words = ["--data", "data", "--meta-steps", "7"]
    assert cli.main(["train", "--preset", "m55t", *words]) == 0
    assert cli.main(["train", "mini-imagenet", "--preset=m55t", *words]) == 0
    assert cli.main(["train", "mini-imagenet", *words]) == 0
    assert cli.main(["train", "--preset", "sinusoid-serial"]) == 0
    assert cli.main(["train", "sinusoid"]) == 0
    changed = lambda name: dataclasses.replace(presets.ALL[name], meta_steps=7)
    assert started == [
        ("m55t", changed("m55t")),
        ("m55t", changed("m55t")),
        (None, changed("m15")),
        ("sinusoid-serial", SinusoidConfig(meta_batch=1, meta_rate=0.1)),
        (None, SinusoidConfig()),
    ]


@pytest.mark.parametrize("command", [["train", "images"], ["evaluate"], ["train", "--resume"]])
def test_a_data_set_is_asked_for_where_it_is_needed_and_only_there(
    command, run, whole, pictures, capsys
):
    of_images = small_images.OPTIONS if command[-1] == "images" else [str(run)]
    assert cli.main([*command, *of_images]) == 1
    said = "this is a run of images: give the data set's folder with --data"
    assert said in capsys.readouterr().err
    of_waves = ["train", "sinusoid"] if command[-1] == "images" else [*command, str(whole)]
    assert cli.main([*of_waves, "--data", str(pictures)]) == 1
    assert "this is a run of sinusoid: it takes no --data" in capsys.readouterr().err


def test_an_evaluation_changes_what_it_is_told_and_nothing_else(monkeypatch, run):
    told = []
    evaluate = lambda folder, data, *, mesh, **changes: told.append((str(folder), changes))
    monkeypatch.setattr(runner, "evaluate", evaluate)
    assert cli.main(["evaluate", "run"]) == 0
    argv = ["--eval-ways", "3", "--balanced-eval", "False", "--eval-shots", "4", "--seed", "0"]
    assert cli.main(["evaluate", "run", *argv]) == 0
    changes = {"eval_ways": 3, "balanced_eval": False, "eval_shots": 4, "seed": 0}
    assert told == [("run", {}), ("run", changes)]


def test_values_that_are_not_of_the_runs_experiment_are_named(whole, capsys):
    argv = ["evaluate", str(whole), "--eval-tasks", "5", "--shots", "1", "--eval-ways", "2"]
    assert cli.main(argv) == 1
    assert "is a run of sinusoid, without eval_ways, shots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["--save-every", "0"], "save_every is at least 1, got 0"),
        (["--eval-tasks", "1"], "eval_tasks is at least 2, got 1"),
        (["--meta-steps", "0"], "meta_steps is at least 1, got 0"),
        (["--meta-batch", "-3"], "meta_batch is at least 1, got -3"),
        (["--inner-rate", "nan"], "inner_rate is a finite number, got nan"),
        (["--meta-momentum", "1.5"], "meta_momentum is between 0 and 1, got 1.5"),
        (
            ["--balanced-batches", "--inner-batch", "3"],
            "inner_batch is a multiple of the ways, got 3",
        ),
        (["--split", "background"], "split is for omniglot alone"),
        (["--dataset", "omniglot"], "--dataset is what follows train: train omniglot"),
    ],
)
def test_values_that_could_only_fail_later_are_refused(values, message, pictures, capsys, tmp_path):
    assert cli.main(small_images.train_command(pictures, *values)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_another_equation_is_what_follows_train(capsys):
    assert cli.main(["train", "burgers", "--equation", "heat"]) == 1
    assert "--equation is what follows train: train heat" in capsys.readouterr().err


def test_download_shows_where_the_files_are(monkeypatch, tmp_path, capsys):
    def download_omniglot(out, *, report):
        report("images_background.zip", 5, None)
        report("images_background.zip", 10, 10)
        return (out / "images_background.zip",)

    monkeypatch.setattr(datasets, "download_omniglot", download_omniglot)
    assert cli.main(["download", "omniglot", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "images_background.zip")


@pytest.mark.parametrize("command", [*commands.COMMANDS, "train sinusoid", "train images"])
def test_each_command_takes_help(command, capsys):
    with contextlib.suppress(SystemExit):  # as a parser ends
        assert cli.main([*command.split(), "--help"]) == 0
    assert f"usage: reptile-jax {command}" in capsys.readouterr().out


def test_presets_are_listed_with_what_they_change(capsys):
    assert cli.main(["presets"]) == 0
    printed = capsys.readouterr().out
    for name in presets.PAPER:
        assert f" {name} " in printed
    lines = dict(line.split(": ") for line in printed.splitlines() if ": " in line)
    base, changes = lines["o15-zero-pairs"].split(" with ")
    assert base == "o15"
    assert set(changes.split(", ")) == {
        *("inner_rate=0.004", "classifier=zero", "meta_batch=2", "meta_steps=62500")
    }
    assert lines["o120-balanced-tenth"].startswith("o120 with ")
    assert {"balanced_batches=True", "inner_rate=0.002"} < set(
        lines["o120-balanced-tenth"].split(" with ")[1].split(", ")
    )
    assert lines["sinusoid-serial"] == "sinusoid with meta_batch=1, meta_rate=0.1"
