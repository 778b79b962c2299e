"""What is published of the paper's trainings: each row it serves, with its command and settings."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.paper import trainings
from reptile_jax.app.config import FewShotConfig

Options = trainings.Options


def test_what_is_published_says_how_and_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "paper", "o15", "--data", "/some/where"])
    publish = lambda **figures: trainings.publish(
        Options("o15", out=tmp_path), "rows", "o15-seed0", {"seed": 0}, figures
    )
    publish(tasks=3)
    publish(tasks=3)
    publish(tasks=4)
    content = records.read(tmp_path / "paper" / "rows.json")
    assert content["title"] == "The paper's rows"
    assert [(arm["run"], arm["data"]["tasks"]) for arm in content["arms"]] == [(1, 3), (2, 4)]
    assert content["arms"][0]["command"] == "python -m benchmarks paper o15 --data DIR"
    assert content["arms"][0]["machine"]["cores"]


@pytest.fixture
def published(monkeypatch):
    """By file and arm, the settings and the figures that would be published."""
    found = {}

    def scored(config, folder, data, changes, mesh):
        config = dataclasses.replace(config, **changes)
        config.check()
        as_json = dataclasses.asdict(config)
        return {"meta steps": config.meta_steps, "config": as_json}

    def publish(options, file, arm, settings, figures):
        found[file, arm] = settings, figures

    monkeypatch.setattr(trainings, "trained", lambda config, folder, data, mesh: None)
    monkeypatch.setattr(trainings, "scored", scored)
    monkeypatch.setattr(trainings, "_figures", lambda result, folder: {})
    monkeypatch.setattr(trainings, "publish", publish)
    return found


def asked(published):
    names = ("ways", "eval_ways", "shots", "eval_batch", "eval_steps", "eval_tasks")
    return [tuple(settings[name] for name in names) for settings, _ in published.values()]


def test_a_training_is_published_as_each_row_it_serves(published):
    rows = ("o15", "o55", "o120", "o520")
    assert trainings._rows_from("o15-balanced-quarter") == rows
    assert trainings._rows_from("o120-balanced-tenth") == ("o120", "o15", "o55", "o520")
    trainings.few_shot("o15-balanced-quarter", rows[:3])(Options(""))
    assert [*published] == [("beyond", f"{row}-balanced-quarter-seed0") for row in rows[:3]]
    assert asked(published) == [
        (5, None, 1, 5, 50, 10_000),
        (5, None, 5, 5, 50, 10_000),
        (5, 20, 1, 10, 50, 2_500),
    ]
    assert all(figures["row"] is None for _, figures in published.values())


def test_a_balanced_evaluation_gives_as_many_images(published):
    rows = ("o15", "o55", "o120", "o520")
    trainings.few_shot("o15-balanced-quarter", rows)(Options("", balanced_eval=True))
    # In o15 every mini-batch is the support set.
    names = [f"{row}-balanced-quarter-balanced-eval-seed0" for row in rows[1:]]
    assert [arm for _, arm in published] == names
    assert asked(published) == [
        (5, None, 5, 5, 50, 10_000),
        (5, 20, 1, 20, 25, 2_500),
        (5, 20, 5, 20, 25, 2_500),
    ]
    assert all(settings["balanced_eval"] for settings, _ in published.values())


def test_only_a_whole_training_evaluated_as_in_the_paper_is_a_row(published):
    run = lambda *rows, **options: trainings.few_shot("o15", rows)(Options("", **options))
    run("o15", "o55", balanced_eval=True)
    assert published["beyond", "o55-balanced-eval-seed0"][1]["row"] is None
    run("o15", "o55", seed=3, inner_opt_state="carry")
    assert published["rows", "o55-carry-seed3"][1]["row"] == "o55"
    run("o15", seed=3, inner_opt_state="carry", meta_steps=7)
    assert published["beyond", "o15-carry-7-steps-seed3"][1]["row"] is None
    run("o15", inner_opt_state="average")
    assert published["rows", "o15-seed0"][1]["row"] == "o15"


def test_training_seconds_add_up_over_the_pieces(tmp_path):
    pieces = [(0, 10, 5.0), (0, 20, 9.0), (20, 30, 4.0), (30, 40, 3.0), (30, 50, 7.5)]
    rows = [{"from": a, "to": b, "seconds": s} for a, b, s in pieces]
    (tmp_path / "times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trainings.training_seconds(tmp_path) == 9.0 + 4.0 + 7.5


def test_learning_curves_are_thinned_to_means(tmp_path):
    rows = [{"step": s, "first_loss": float(s), "last_loss": s / 10} for s in range(10, 70, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = trainings.learning_curve(tmp_path, points=3)
    assert curve["meta steps"] == [20, 40, 60]
    assert curve["first_loss"] == [15.0, 35.0, 55.0]
    rows[0] |= {"first_loss": None}  # a line that was lost
    rows[2] |= {"first_loss": None}
    rows[3] |= {"first_loss": None}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trainings.learning_curve(tmp_path, points=3)["first_loss"] == [20.0, None, 55.0]


def test_an_evaluation_is_found_again_by_its_configuration(tmp_path):
    config = FewShotConfig(meta_steps=7)
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    del as_json["classifier"]  # a field that is younger than the result
    wanted = {"config": {**as_json, "shots": 5}, "meta steps": 7, "tasks": 3}
    (tmp_path / "results.json").write_text(json.dumps({"config": as_json}))
    (tmp_path / "evaluation-2.json").write_text(json.dumps(wanted))
    assert trainings.scored(config, tmp_path, Path("nowhere"), {"shots": 5}) == wanted


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed")
def test_the_sine_waves_are_trained_once_and_published(tmp_path):
    options = Options("sinusoid", runs=tmp_path / "runs", out=tmp_path, meta_steps=10)
    for _ in range(2):
        trainings.sinusoids(options, seeds=1)
    content = records.read(tmp_path / "paper" / "sinusoid.json")
    assert [(arm["arm"], arm["run"]) for arm in content["arms"]] == [("batched", 1), ("serial", 1)]
    for arm in content["arms"]:
        errors = arm["data"]["mean squared error"]
        assert [*errors] == ["Reptile", "random", "joint training"]
        assert len(errors["Reptile"]["by seed"]) == 1
        assert errors["Reptile"]["inner steps"][-1] == 32
        assert arm["settings"]["meta_steps"] == 10
