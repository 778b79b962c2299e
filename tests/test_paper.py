"""What is published of the paper's results: taken from runs, and read from JSON alone."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import paper, paper_report

from reptile_jax import presets


def result(row, transductive, non_transductive, **more):
    accuracy = {
        "transductive": {"mean": [0.2, transductive / 100], "interval": [0.01, 0.002]},
        "non-transductive": {"mean": [0.2, non_transductive / 100], "interval": [0.01, 0.003]},
    }
    return {"row": row, "accuracy": accuracy, **more}


def test_rows_stand_against_the_paper_and_the_band_of_its_reruns():
    found = {
        "o15-seed0": result("o15", 97.60, 95.50),
        "o15-seed1": result("o15", 97.80, 95.30),
        "o15-100-steps-seed0": result(None, 60.0, 50.0),  # no row of the paper's
        "o55-seed0": result("o55", 99.60, 98.50),
    }
    lines = paper_report.rows_table(found)
    assert len(lines) == 2 + 4
    link = "[o15-seed0](benchmarks/results/paper/o15-seed0.json)"
    other = link.replace("seed0", "seed1")
    assert lines[2] == (
        "| o15 | 95.39 ± 0.09 | 95.20 to 95.56 | 95.50 ± 0.30, 95.30 ± 0.30 | yes "
        f"| {link}, {other} |"
    )
    assert "97.60 ± 0.20, 97.80 ± 0.20 | yes" in lines[3]
    assert "98.50 ± 0.30 | 0.39 below" in lines[4]
    assert "99.60 ± 0.20 | 0.07 above" in lines[5]


def test_another_inner_state_has_rows_of_its_own():
    carried = result("o15", 97.7, 95.4, config={"inner_state": "carried"})
    averaged = result("o15", 97.3, 95.3, config={"inner_state": "averaged"})
    lines = paper_report.rows_table({"o15-carried-seed0": carried, "o15-seed0": averaged})
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| o15",
        "| o15, carried",
        "| o15t",
        "| o15t, carried",
    ]
    assert "| 97.70 ± 0.20 | yes | [o15-carried-seed0](" in lines[5]


def test_what_goes_beyond_stands_under_the_paper():
    name, rest = "o15-balanced", "-balanced"
    steps = presets.BEYOND[name].meta_steps
    of = {"preset": name, "meta steps": steps, "config": {"seed": 0}}
    carried = {**of, "config": {"seed": 0, "inner_state": "carried"}}
    balanced = {**of, "config": {"seed": 0, "balanced_eval": True}}
    found = {
        f"o15{rest}-seed0": result(None, 98.7, 98.1, **of),
        f"o120{rest}-seed0": result(None, 95.0, 94.0, **of),
        f"o120{rest}-balanced-eval-seed0": result(None, 97.0, 96.0, **balanced),
        f"o15{rest}-carried-seed0": result(None, 50.0, 40.0, **carried),
        "o120-9-steps-seed0": result(None, 30.0, 20.0, **{**of, "preset": "o120", "meta steps": 9}),
        "o15-seed0": result("o15", 97.3, 95.3, preset="o15"),
    }
    lines = paper_report.beyond_table(found)
    assert len(lines) == 7
    assert "| 95.39 ± 0.09 | 97.68 ± 0.04 | 88.14 ± 0.15 | 89.43 ± 0.14 |" in lines[2]  # no o55
    assert lines[3].startswith("| o120, seed 0 | 9 |  |  | 20.00 ± 0.30 | 30.00 ± 0.20 |")
    cells = lines[4].split(" | ")
    assert cells[:4] == [f"| {name}, seed 0", f"{steps:,}", "98.10 ± 0.30", "98.70 ± 0.20"]
    assert cells[4:6] == ["94.00 ± 0.30", "95.00 ± 0.20"]
    assert lines[5].startswith(f"| {name}, carried, seed 0 | {steps:,} | 40.00 ± 0.30 |")
    cells = lines[6].split(" | ")
    assert cells[0] == f"| {name}, evaluated balanced, seed 0"
    assert cells[2:6] == ["", "", "96.00 ± 0.30", "97.00 ± 0.20"]
    assert paper_report.beyond_table({"o15-seed0": found["o15-seed0"]}) == []


def test_a_training_has_one_curve_however_it_is_evaluated():
    of = {"preset": "o120-balanced-tenth", "learning curve": {}}
    names = ["o120-balanced-tenth-seed0", "o120-balanced-tenth-balanced-eval-seed0"]
    found = {name: of for name in (*names, "o15-balanced-tenth-seed0", "o120-balanced-tenth-seed1")}
    trainings = dict(paper_report._by_training(found))
    assert {name: [*seeds] for name, seeds in trainings.items()} == {
        "o120-balanced-tenth": ["seed 0", "seed 1"]
    }


def test_the_sine_waves_interval_is_over_seeds():
    error = {"steps": [0, 32], "by seed": [[4.0, 0.1], [6.0, 0.3]]}
    found = {"sinusoid-batched": {"mean squared error": {"Reptile": error, "random": error}}}
    lines = paper_report.sinusoid_table(found)
    half = 12.706 * np.sqrt(2) / np.sqrt(2)  # the t quantile with one degree of freedom
    assert lines[0] == "| after SGD steps | 0 | 32 |"
    assert lines[2] == f"| Reptile, batched | 5.000 ± {half:.3f} | 0.200 ± {half / 10:.3f} |"
    assert lines[3].startswith("| random | ")


def test_only_parts_with_results_are_written(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    monkeypatch.setattr(paper_report, "README", readme)
    monkeypatch.setattr(paper_report, "RESULTS", tmp_path)
    readme.write_text("<!-- sine waves over seeds -->\n<!-- end of sine waves over seeds -->\n")
    paper_report.write()
    assert "|" not in readme.read_text()
    error = {"steps": [0], "by seed": [[4.0], [6.0]]}
    content = {"mean squared error": {"Reptile": error}}
    (tmp_path / "sinusoid-batched.json").write_text(json.dumps(content))
    paper_report.write()
    assert "| Reptile, batched | 5.000 ± " in readme.read_text()


def test_only_the_part_between_the_markers_is_written(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    monkeypatch.setattr(paper_report, "README", readme)
    readme.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n")
    paper_report.replace("a", ["| new |"])
    assert readme.read_text() == "before\n<!-- a -->\n\n| new |\n\n<!-- end of a -->\nafter\n"
    with pytest.raises(ValueError, match="has no <!-- b -->"):
        paper_report.replace("b", [])


def test_what_is_published_says_how_without_the_places_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "RESULTS", tmp_path)
    argv = ["paper.py", "o15", "--data", "/some/where", "--runs=/else", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    paper.publish("o15-seed1", {"tasks": 3})
    there = json.loads((tmp_path / "o15-seed1.json").read_text())
    assert there["command"] == "python -m benchmarks.paper o15 --data DIR --runs DIR --seed 1"
    assert there["tasks"] == 3
    assert there["machine"]["cores"]


def test_a_training_is_published_as_each_row_it_serves(tmp_path, monkeypatch):
    published, asked = {}, []

    def scored(config, folder, data, changes, mesh):
        asked.append((config.ways, config.shots, config.eval_batch, config.eval_tasks))
        as_json = dataclasses.asdict(config)
        return {"accuracy": {}, "tasks": 1, "meta steps": config.meta_steps, "config": as_json}

    monkeypatch.setattr(paper, "trained", lambda config, folder, data, mesh: None)
    monkeypatch.setattr(paper, "scored", lambda *args: {**scored(*args), "evaluation seconds": 1})
    monkeypatch.setattr(paper, "training_seconds", lambda folder: 1)
    monkeypatch.setattr(paper, "learning_curve", lambda folder: {})
    monkeypatch.setattr(paper, "publish", published.__setitem__)
    rows = ("o15", "o55", "o120")
    paper.few_shot("o15-balanced-quarter", rows)(paper.Options(()))
    assert asked == [(5, 1, 5, 10_000), (5, 5, 5, 10_000), (20, 1, 10, 2_500)]
    names = [f"{row}-balanced-quarter-seed0" for row in rows]
    assert [*published] == names
    assert all(published[name]["row"] is None for name in names)
    asked.clear()
    all_rows = paper._rows_from("o15-balanced-quarter")
    assert all_rows == (*rows, "o520")
    assert paper._rows_from("o120-balanced-tenth") == ("o120", "o15", "o55", "o520")
    paper.few_shot("o15-balanced-quarter", all_rows)(paper.Options((), balanced_eval=True))
    assert asked == [(5, 5, 5, 10_000), (20, 1, 20, 2_500), (20, 5, 20, 2_500)]
    by_ways = published["o55-balanced-quarter-balanced-eval-seed0"]["config"]
    assert (by_ways["balanced_eval"], by_ways["eval_steps"]) == (True, 50)
    assert published["o520-balanced-quarter-balanced-eval-seed0"]["config"]["eval_steps"] == 25
    paper.few_shot("o15", rows[:2])(paper.Options((), balanced_eval=True))
    assert published["o55-balanced-eval-seed0"]["row"] is None
    policy = paper.Options((), seed=3, inner_state="carried", meta_steps=None)
    paper.few_shot("o15", rows[:2])(policy)
    assert published["o55-carried-seed3"]["row"] == "o55"
    paper.few_shot("o15", rows[:1])(dataclasses.replace(policy, meta_steps=7))
    assert published["o15-carried-7-steps-seed3"]["row"] is None
    paper.few_shot("o15", rows[:1])(paper.Options((), inner_state="averaged"))
    assert "o15-seed0" in published


def test_training_seconds_add_up_over_the_pieces(tmp_path):
    pieces = [(0, 10, 5.0), (0, 20, 9.0), (20, 30, 4.0), (30, 40, 3.0), (30, 50, 7.5)]
    rows = [{"from": a, "to": b, "seconds": s} for a, b, s in pieces]
    (tmp_path / "times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert paper.training_seconds(tmp_path) == 9.0 + 4.0 + 7.5


def test_learning_curves_are_thinned_to_means(tmp_path):
    rows = [{"step": s, "first_loss": float(s), "last_loss": s / 10} for s in range(10, 70, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = paper.learning_curve(tmp_path, points=3)
    assert curve["meta steps"] == [20, 40, 60]
    assert curve["first_loss"] == [15.0, 35.0, 55.0]


def test_an_evaluation_is_found_again_by_its_configuration(tmp_path):
    config = paper.presets.FewShotImages(meta_steps=7)
    as_json = json.loads(json.dumps(paper.dataclasses.asdict(config)))
    del as_json["classifier"]  # a field that is younger than the result
    wanted = {"config": as_json, "meta steps": 7, "tasks": 3}
    (tmp_path / "results.json").write_text(json.dumps({"config": {**as_json, "shots": 5}}))
    (tmp_path / "evaluation-2.json").write_text(json.dumps(wanted))
    assert paper.scored(config, tmp_path, Path("nowhere"), {}) == wanted
