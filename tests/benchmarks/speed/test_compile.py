"""The library compiles for TPUs that are not there, and the estimates do not rise unnoticed."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.speed.estimates import Case

from benchmarks import records
from benchmarks.speed import compile, targets

ROOT = Path(__file__).parents[3]
PROGRAMS, CHIPS = ("o15-dispatch", "sinusoid-dispatch"), (1, 16)

needs_libtpu = pytest.mark.skipif(
    not targets.compilers("tpu") and "NEEDS_LIBTPU" not in os.environ,
    reason="libtpu is not installed",
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What `python -m benchmarks compile` finds today."""
    out = tmp_path_factory.mktemp("out")
    asked = ["--programs", ",".join(PROGRAMS), "--chips", ",".join(map(str, CHIPS))]
    command = [sys.executable, "-m", "benchmarks", "compile", "v5e", *asked, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "speed" / "compile_v5e.json").read_text())["data"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chips", CHIPS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_compiles_for_a_tpu_with_one_all_reduce_and_no_more_cycles(
    program, chips, compiled
):
    label = Case(program, targets.CHIPS["v5e"], chips, 64).label
    found = compiled[label]
    assert "error" not in found
    assert found["collectives"] == ({} if chips == 1 else {"all-reduce": 1})
    assert found["cost"] > 0
    record = records.read(records.RESULTS / "speed" / "compile_v5e.json")
    committed = record.get("data", {}).get(label)
    assert committed, "not there: run `python -m benchmarks compile v5e` and commit its record"
    if committed["compilers"] != found["compilers"]:
        had, has = committed["compilers"]["libtpu"], found["compilers"]["libtpu"]
        print(f"{label}: cycles were not compared, for they are of libtpu {had}, and this is {has}")
        return
    for cost in (lambda of: of["cost"], lambda of: of["cost"] + of["cost_of_the_rest"]):
        assert cost(found) <= 1.1 * cost(committed), "see `python -m benchmarks compile v5e`"


@needs_libtpu
@pytest.mark.slow
def test_the_guide_on_compiling_says_what_it_prints(tmp_path):
    text = (ROOT / "docs" / "guides" / "compile_for.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    code = "\n".join(body for language, body in blocks if language in ("python", "py"))
    (printed,) = [body for language, body in blocks if language == "text"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other tests may compile at the same time
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    number = lambda shown: [re.sub(r"^\d+ MiB", "N MiB", line) for line in shown.splitlines()]
    assert number(done.stdout) == number(printed)


def test_a_compiler_that_is_not_here_is_named(monkeypatch, capsys):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(targets.importlib.metadata, "version", version)
    monkeypatch.setattr(targets, "use_compilers", lambda: None)
    assert compile.main(["v5e"]) == 1
    assert 'v5e is left out: pip install ".[tpu]"' in capsys.readouterr().out


def test_what_does_not_exist_is_named():
    with pytest.raises(SystemExit, match="there is no v9; there are v4, v5e, v6e, h100, h200"):
        compile.main(["v9"])
    with pytest.raises(SystemExit, match=r"7 chips of v5e are not described; there are 1, 4, 8"):
        targets.CHIPS["v5e"].mesh(7)


def test_a_refusal_of_the_compiler_is_a_row_and_what_is_there_stays(monkeypatch, tmp_path, capsys):
    def estimate(case):
        if case.program == "m15-step":
            raise RuntimeError("out of memory")
        return FOUND | {"program": case.program, "chip": case.chip.name, "chips": case.chips}

    monkeypatch.setattr(compile.estimates, "estimate", estimate)
    monkeypatch.setattr(targets, "use_compilers", lambda: None)
    monkeypatch.setattr(targets, "compilers", lambda platform: {"libtpu": "1"})
    run = lambda *more: compile.main(["v5e", "--chips", "16", "--out", str(tmp_path), *more])
    assert run("--programs", "o15-step,m15-step") == run("--programs", "o15-step") == 0
    content = json.loads((tmp_path / "speed" / "compile_v5e.json").read_text())
    assert content["title"] == "v5e: the compiler's estimates for a chip that was not there"
    assert content["machine"]["versions"]["libtpu"] == "1"
    done, refused = content["rows"]
    assert done[:4] == ["o15-step", "16", "1,024", "16"]
    assert done[5:] == ["1 all-reduce", "2.0", "0.0%", "9", "100", "20%", "1.2%", "a.py:1 (75%)"]
    assert refused[:3] == ["m15-step", "16", "1,024"]
    assert refused[-1] == "RuntimeError: out of memory"
    assert capsys.readouterr().out.count("o15-step, 16 x v5e:") == 1


def test_a_race_has_a_column_for_each_number_of_tasks_at_once_and_the_best_is_bold():
    costs = {8: 200.0, 16: 100.0}
    data = {
        f"{chip} {chunk}": FOUND | {"chip": chip, "asked_at_once": chunk, "cost": cost}
        for chip in ("v5e", "h100")
        for chunk, cost in costs.items()
    }
    table = compile.estimates.race_table(data)
    assert table.columns == ["program", "of", "convolution", "8", "16"]
    assert table.rows == [
        ["o15-step", "cycles on v5e", "lax", "200", "**100**"],
        ["o15-step", "µs on h100", "lax", "200.00 + 3 calls", "**100.00 + 3 calls**"],
    ]


FOUND = {
    "program": "o15-step",
    "chip": "v5e",
    "chips": 1,
    "tasks": 64,
    "formulation": "lax",
    "seconds": 3.0,
    "temporary_bytes": 2 * 2**20,
    "cost": 100.0,
    "cost_of_the_rest": 25.0,
    "share_of_peak": 0.0123,
    "kernels": 9,
    "calls_without_cost": 3,
    "at_once": 16,
    "collectives": {"all-reduce": 1},
    "lines": [["a.py:1", 0.75]],
}
