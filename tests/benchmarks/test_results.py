"""The committed results: their number, their commands, and the pages that show them."""

import argparse
import dataclasses
import json
import shlex

import pytest
from benchmarks.comparison.experiment import record

from benchmarks import commands, records, report
from benchmarks.comparison import contest, outcomes, stability
from benchmarks.paper import evaluations, lane_list, lanes, precision, recipes
from reptile_jax.app import json_files, presets, run_folder
from reptile_jax.app.config import FewShotConfig

FILES = sorted(path for path in records.RESULTS.rglob("*") if path.is_file())
COMMITTED = [path for path in FILES if not {"quick", "tiny"} & set(path.parts)]
JSON = [path for path in COMMITTED if path.suffix == ".json"]


def test_results_are_few_files_and_no_checkpoints():
    assert len(COMMITTED) <= 80
    assert {path.suffix for path in COMMITTED} == {".json", ".png"}


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_every_record_has_a_command_that_exists(path):
    content = json.loads(path.read_text())
    assert content["title"]
    for record_ in [content, *content.get("arms", [])]:
        if "command" not in record_:
            continue
        words = shlex.split(record_["command"])
        if words[0] == "reptile-jax":
            assert words[1] == "train"
            assert words[2] == "sinusoid" or words[words.index("--preset") + 1] in presets.ALL
            known = {f.name for f in dataclasses.fields(FewShotConfig)} | {"preset", "data"}
            asked = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
            assert asked <= known
        else:
            assert words[:3] == ["python", "-m", "benchmarks"]
            assert commands.find(words[3:]) is not None
        assert not any("/" in word for word in words)


def test_the_pages_are_what_the_report_writes():
    for path, text in report.pages(records.RESULTS, report.PAGES, "small").items():
        assert path.read_text() == text, f"{path.name}: run `python -m benchmarks report`"


def test_the_committed_arms_are_found_again_by_todays_settings():
    path, size = record("reptile_vs_maml"), contest.SIZES["small"]
    assert outcomes.missing(path, size) == []
    assert [*stability.stored(path, size)] == [*stability.METHODS]
    for name, tasks in {"o15_1000": 400, "o15_5000": 1000, "o120_1000": 200}.items():
        preset, steps = name.split("_")
        args = argparse.Namespace(preset=preset, meta_steps=int(steps), tasks=tasks)
        path = records.RESULTS / "paper" / f"recipes_{name}.json"
        rows = records.read(path)["rows"]
        assert rows
        assert recipes.tabulated(path, args) == rows
    path = records.RESULTS / "paper" / "evaluations_o120_1000.json"
    assert evaluations.tabulated(path) == records.read(path)["rows"]
    path = records.RESULTS / "paper" / "lanes.json"
    assert lanes.tabulated(path) == records.read(path)["rows"]
    for name, arm in records.newest(path).items():
        assert arm["settings"] == json_files.plain(
            lanes.settings_of(lane_list.PROGRAMS[name], 4894, 400)
        )
    path = records.RESULTS / "paper" / "precision_o15_1000.json"
    args = argparse.Namespace(meta_steps=1000, tasks=2000, seeds=2)
    assert precision.tabulated(path, args) == records.read(path)["rows"]


def test_the_trainings_have_what_evaluate_and_adapt_read():
    folder = records.RESULTS.parent / "trainings"
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["o120-prototypes", "o15-balanced-quarter", "o15-carry", "sinusoid"]
    for name in found[:-1]:
        assert isinstance(run_folder.load_config(folder / name), FewShotConfig)
        classes = json.loads((folder / name / "classes.json").read_text())
        training = 9600 if name == "o120-prototypes" else 4800  # mirrored as well
        assert [len(classes[split]) for split in ("train", "test")] == [training, 423]
        (checkpoint,) = (folder / name / "checkpoints").iterdir()
        assert int(checkpoint.name) == run_folder.load_config(folder / name).meta_steps
