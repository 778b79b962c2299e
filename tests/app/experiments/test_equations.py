"""Families of equations, end to end and small."""

import contextlib
import io
import json

import chex
import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from reptile_jax.app import cli
from reptile_jax.app.config import EquationsConfig
from reptile_jax.app.experiments import equations

SMALL = "--meta-steps 6 --steps-per-dispatch 3 --inner-steps 3 --points 20 --hidden 4".split()
SMALL += "--eval-steps 1000 --eval-tasks 2".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small run, and what was printed."""
    place, printed = tmp_path_factory.mktemp("equations"), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed):
        assert cli.main(["train", "burgers", *SMALL]) == 0
    return place / "runs" / "burgers", printed.getvalue()


@pytest.mark.slow
def test_train_burgers_leaves_a_whole_run(run):
    folder, printed = run
    results = json.loads((folder / "results.json").read_text())
    assert set(results["scores"]) == {"Reptile", "random", "joint training"}
    for scores in results["scores"].values():
        assert set(scores) == {"loss", "error"}
        assert scores["error"]["inner steps"] == list(range(0, 1001, 10))
        assert scores["loss"]["mean"][-1] < scores["loss"]["mean"][0]
    header = next(line for line in printed.splitlines() if "inner steps" in line)
    assert [word for word in header.split() if word.isdigit()] == ["0", "10", "100", "1000"]
    with Image.open(folder / "adaptation.png") as picture:
        assert picture.width > 1000


@pytest.mark.slow
def test_a_run_is_scored_outside_its_range(run, capsys):
    folder, _ = run
    more = ["--eval-viscosity", "0.05", "0.1", "--eval-steps", "20"]
    assert cli.main(["evaluate", str(folder), *more]) == 0
    assert "viscosities 0.05 to 0.1" in capsys.readouterr().out
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["config"]["eval_viscosity"] == [0.05, 0.1]
    assert result["scores"]["Reptile"]["error"]["inner steps"] == [0, 10, 20]


def test_joint_training_sees_another_equation_at_every_inner_step():
    config = EquationsConfig(points=20, inner_steps=6)
    experiment = equations.build(config)
    ours, joint = (
        jax.jit(tasks.sample)(jax.random.key(0)).support
        for tasks in (experiment.training_tasks, experiment.rivals["joint training"])
    )
    chex.assert_trees_all_equal_shapes(ours, joint)
    assert len(jnp.unique(ours.viscosity)) == 1
    assert len(jnp.unique(joint.viscosity)) == 6
    assert len(jnp.unique(joint.inside[..., 0])) == 6 * 20


@pytest.mark.slow
def test_train_heat(tmp_path):
    assert cli.main(["train", "heat", *SMALL, "--eval-steps", "15", "--out", "run"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["viscosity"] == [0.05, 0.2]
    assert results["scores"]["Reptile"]["error"]["inner steps"] == [0, 15]


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (["--viscosity", "0", "0.1"], "viscosity is two numbers, (lowest, highest), between"),
        (["--eval-viscosity", "-1", "0.1"], "viscosity is two numbers, (lowest, highest), between"),
        (["--viscosity", "0.2", "0.1"], "got (0.2, 0.1)"),
        (["--points", "0"], "points is at least 1, got 0"),
    ],
)
def test_families_that_cannot_be_drawn_are_refused(option, problem, capsys, tmp_path):
    assert cli.main(["train", "burgers", *option]) == 1
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
