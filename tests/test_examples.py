"""Every example runs as it is printed, with fewer meta steps."""

import contextlib
import runpy
import sys
import types
from pathlib import Path

import jax
import pytest

ALL = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
EXAMPLES = [path for path in ALL if path.stem != "languages"]  # test_languages.py has that one

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path), "1000"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    # Optax's own arithmetic fails under strict promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(path), run_name="__main__")
    assert "meta step 1000: loss" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) < 60


def test_there_is_one_for_each_kind_of_parameters():
    assert {path.stem.split("_")[0] for path in EXAMPLES} == {
        "linen",
        "nnx",
        "equinox",
        "haiku",
        "dict",
    }


def test_the_one_that_logs_goes_on_where_it_was_stopped(monkeypatch, tmp_path):
    logged = []

    def log(metrics, step):
        logged.append((step, metrics["loss"]))
        if len(logged) == 6:
            raise KeyboardInterrupt

    run = types.SimpleNamespace(log=log)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    monkeypatch.chdir(tmp_path)
    path = next(path for path in EXAMPLES if "wandb" in path.stem)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        monkeypatch.setattr("sys.argv", [str(path), "700"])
        for stopped in (True, False, False):
            with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
                runpy.run_path(str(path), run_name="__main__")
    # Step 600 was not saved, and is taken again; the last one was, and no step is left to take.
    assert [step for step, _ in logged] == [100, 200, 300, 400, 500, 600, 600, 700]
    assert logged[5] == logged[6]
