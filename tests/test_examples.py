"""Every example runs as it is printed, with fewer meta steps."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(path), "1000"])
    # Optax's own arithmetic is not for strict promotion.
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(path), run_name="__main__")
    assert "meta step 1000: loss" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) < 60


def test_there_is_one_for_each_kind_of_parameters():
    assert {path.stem.split("_")[0] for path in EXAMPLES} == {"linen", "nnx", "dict"}
