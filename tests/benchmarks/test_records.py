"""Records: arms are found by their settings, and no measurement is overwritten."""

import jax.numpy as jnp
import pytest
from benchmarks.tables import Table

from benchmarks import records

ABOUT = {"title": "A", "command": "python -m benchmarks a"}


def test_an_arm_is_measured_once_and_never_overwritten(tmp_path):
    path, calls = tmp_path / "room" / "a.json", []

    def measured():
        calls.append(1)
        return {"x": jnp.array([1.0, jnp.nan]), "call": len(calls)}

    run = lambda settings, **how: records.run(path, ABOUT, "a", settings, measured, **how)["data"]
    assert run({"rate": 0.1, "weights": (1, 2)}) == {"x": [1.0, None], "call": 1}
    assert run({"rate": 0.1, "weights": (1, 2)})["call"] == 1
    assert run({"rate": 0.2})["call"] == 2
    assert run({"rate": 0.1, "weights": (1, 2)})["call"] == 1
    assert run({"rate": 0.1, "weights": (1, 2)}, fresh=True)["call"] == 3
    assert records.stored(path, "a", {"rate": 0.1, "weights": (1, 2)})["data"]["call"] == 3
    assert records.stored(path, "a", {"rate": 0.3}) is None
    younger = lambda *defaults, **asked: records.stored(path, "a", asked, *defaults)
    assert younger(rate=0.1, weights=(1, 2), momentum=0.0) is None
    defaults = {"rate": 0.5, "momentum": 0.0}  # what an arm says counts before them
    assert younger(defaults, rate=0.1, weights=(1, 2), momentum=0.0)["data"]["call"] == 3
    assert younger(defaults, rate=0.1, weights=(1, 2), momentum=0.9) is None
    assert younger(defaults, rate=0.5, weights=(1, 2), momentum=0.0) is None
    asked = {"rate": 0.1, "weights": (1, 2), "momentum": 0.0}
    assert run(asked, defaults=defaults)["call"] == 3
    content = records.read(path)
    assert {name: content[name] for name in ABOUT} == ABOUT
    runs = [(arm["run"], arm["data"]["call"]) for arm in content["arms"]]
    assert runs == [(1, 1), (2, 2), (3, 3)]
    assert records.newest(path)["a"]["run"] == 3
    records.update(path, {"title": "B"})
    assert records.read(path) == {**content, "title": "B"}


def test_a_table_is_written_whole_and_replaced_only_on_demand(tmp_path):
    path = tmp_path / "speed" / "a.json"
    records.check_free(path, fresh=False)
    records.save(path, Table("A", ["what", "ms"], [["x", "1.0"]], {"ms": [1.0]}), "the command")
    content = records.read(path)
    assert [*content] == ["title", "command", "machine", "columns", "rows", "data"]
    assert content["machine"]["cores"]
    assert content["machine"]["versions"]["jax"]
    assert [path.name for path in path.parent.iterdir()] == ["a.json"]
    with pytest.raises(SystemExit, match="give --fresh to replace it, or --out DIR"):
        records.check_free(path, fresh=False)
    records.check_free(path, fresh=True)


def test_a_diff_of_a_record_has_a_line_for_each_arm(tmp_path):
    path = tmp_path / "a.json"
    for number in range(3):
        records.add_arm(path, ABOUT, {"arm": str(number), "settings": {}, "data": {"x": [1, 2]}})
    lines = path.read_text().splitlines()
    assert sum(line.startswith('{"arm"') for line in lines) == 3


def test_commands_are_stored_without_the_folders_of_a_machine():
    words = ["paper", "o15", "--data", "/some/where", "--runs=/else", "--seed", "1"]
    expected = "python -m benchmarks paper o15 --data DIR --runs DIR --seed 1"
    assert records.command_of(words) == expected
