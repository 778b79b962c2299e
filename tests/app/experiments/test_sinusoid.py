"""The sine waves, end to end and small."""

import contextlib
import io
import json
import shutil
import signal

import chex
import pytest
from PIL import Image

from reptile_jax.app import cli, experiments, run_folder
from tests.app.stopping import stop_at


@pytest.fixture(scope="module")
def waves(tmp_path_factory):
    """The folder of a small run, in the place that it has by default, and what was printed."""
    argv = ["--meta-steps", "30", "--eval-tasks", "20", "--steps-per-dispatch", "20"]
    place, printed = tmp_path_factory.mktemp("waves"), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed):
        assert cli.main(["train", "sinusoid", *argv]) == 0
    return place / "runs" / "sinusoid", printed.getvalue()


def test_train_sinusoid_leaves_a_whole_run(waves):
    run, printed = waves
    config = json.loads((run / "config.json").read_text())
    assert config["experiment"] == "sinusoid"
    assert config["meta_steps"] == 30
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 30]
    assert rows[-1]["tasks_left_out"] == 0
    assert all(0 < row["last_loss"] < 10 for row in rows)
    with Image.open(run / "adaptation.png") as picture:
        assert picture.width > 1000
    assert (run / "learning_curve.png").is_file()
    results = json.loads((run / "results.json").read_text())
    assert results["score"] == "error"
    assert results["meta steps"] == 30
    errors = {name: scores["error"] for name, scores in results["scores"].items()}
    assert set(errors) == {"Reptile", "random", "joint training"}
    assert errors["Reptile"]["inner steps"] == list(range(33))
    assert errors["Reptile"]["mean"][-1] < errors["Reptile"]["mean"][0]
    first = f"{errors['Reptile']['mean'][0]:.3f} ± {errors['Reptile']['ci95'][0]:.3f}"
    assert first in printed
    header = next(line for line in printed.splitlines() if "inner steps" in line)
    assert [word for word in header.split() if word.isdigit()] == "0 1 2 4 8 16 32".split()
    assert "30/30 meta steps" in printed


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
    assert "a run of sinusoid: it takes no --data" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "run"]) == 0
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert (whole / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    first_state = experiments.build(run_folder.load_config(run)).first_state
    chex.assert_trees_all_equal(
        *(run_folder.restore(folder, first_state) for folder in (whole, run))
    )
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, run))
    assert one["scores"] == other["scores"]


def test_a_trained_run_is_scored_again(waves, tmp_path):
    run = shutil.copytree(waves[0], tmp_path / "waves")
    assert cli.main(["evaluate", "waves"]) == 0
    one, other = (json.loads((run / f"{n}.json").read_text()) for n in ("results", "evaluation"))
    assert other["scores"] == {"Reptile": one["scores"]["Reptile"]}
    assert cli.main(["evaluate", "waves", "--eval-shots", "5", "--eval-steps", "3"]) == 0
    result = json.loads((run / "evaluation-2.json").read_text())
    assert result["scores"]["Reptile"]["error"]["inner steps"] == [0, 1, 2, 3]


def test_sine_waves_that_cannot_be_drawn_are_refused(capsys, tmp_path):
    assert cli.main(["train", "sinusoid", "--eval-shots", "60"]) == 1
    assert "1 <= shots <= points, got 60 of 50" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
