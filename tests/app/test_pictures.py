"""The pictures and the report of a run, drawn from its folder alone."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from reptile_jax.app import cli, pictures, report, runner
from reptile_jax.app.config import SinusoidConfig
from tests.app.test_plots import colours

TRAINED = {"learning_curve.png", "scores.png", "adaptation.png", "adaptation.npz", "report.html"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on sine waves that was trained and evaluated."""
    config = SinusoidConfig(meta_steps=6, steps_per_dispatch=2, eval_tasks=5, eval_steps=8)
    folder = runner.train(config, out=tmp_path_factory.mktemp("run") / "<waves> & $more$")
    runner.evaluate(folder, eval_tasks=4)
    return folder


def test_train_and_evaluate_leave_their_pictures(run):
    evaluated = {f"evaluation-{name}" for name in ("scores.png", "adaptation.png")}
    assert {path.name for path in run.iterdir()} >= TRAINED | evaluated
    for path in run.glob("*.png"):
        assert colours(path) > 50


def test_plot_draws_the_same_from_the_folder_alone(run, tmp_path, capsys):
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    before = {path.name: path.read_bytes() for path in [*copy.glob("*.png"), copy / "report.html"]}
    for name in before:
        (copy / name).unlink()
    assert cli.main(["plot", str(copy)]) == 0
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")


def test_the_report_is_one_file_with_scores_pictures_and_values(run):
    page = (run / "report.html").read_text()
    assert "&lt;waves&gt; &amp; $more$" in page
    assert "<waves>" not in page
    assert page.count("data:image/png;base64,") == 5
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name, fields in (("results", None), ("evaluation", None)):
        fields = json.loads((run / f"{name}.json").read_text())
        curve = fields["scores"]["Reptile"]["error"]
        assert f"{curve['mean'][-1]:.3f} ± {curve['ci95'][-1]:.3f}" in page
    assert page.count('<p class="soft">eval_tasks=4</p>') == 1
    assert '<tr class="changed"><td>meta_steps</td><td>6</td></tr>' in page
    assert "<tr><td>inner_rate</td><td>0.02</td></tr>" in page


def test_a_run_that_is_not_evaluated_yet_has_a_learning_curve(run, tmp_path, capsys):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path)
    drawn = pictures.draw(tmp_path)
    assert [path.name for path in drawn] == ["learning_curve.png", "report.html"]
    (tmp_path / "metrics.jsonl").unlink()
    assert cli.main(["plot", str(tmp_path)]) == 1
    assert "has not begun" in capsys.readouterr().err
    assert cli.main(["plot", str(tmp_path / "none")]) == 1


def test_a_damaged_file_of_tasks_is_named_and_the_rest_is_drawn(run, tmp_path, capsys):
    for path in run.glob("*.json*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "adaptation.npz").write_bytes(b"PK no longer")
    names = {path.name for path in pictures.draw(tmp_path)}
    assert "scores.png" in names
    assert "adaptation.png" not in names
    assert "adaptation.npz is damaged" in capsys.readouterr().err


@pytest.mark.attack
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{}"),
        ("results.json", "[]"),
        ("results.json", '{"score": "error", "scores": {"Reptile": {"error": {"mean": [1.0]}}}}'),
        ("metrics.jsonl", '{"a": 1}\n'),
        ("metrics.jsonl", '{"step": "x"}\n'),
    ],
)
def test_files_with_other_fields_are_named(run, tmp_path, name, content):
    for path in run.glob("*.json*"):
        shutil.copy(path, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}.* is damaged"):
        pictures.draw(tmp_path)


@pytest.mark.attack
@pytest.mark.parametrize(
    "name", ["scores.png", "adaptation.png", "learning_curve.png", "report.html", "metrics.jsonl"]
)
def test_a_folder_in_the_place_of_a_file_is_named(run, tmp_path, capsys, name):
    for path in run.glob("*.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert cli.main(["plot", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == f"reptile-jax: {tmp_path / name}: this is a folder, in the place of a file\n"


@pytest.mark.attack
def test_a_pipe_in_the_place_of_the_tasks_is_not_waited_for(run, tmp_path, capsys):
    for path in run.glob("*.json*"):
        shutil.copy(path, tmp_path)
    os.mkfifo(tmp_path / "adaptation.npz")
    assert "scores.png" in {path.name for path in pictures.draw(tmp_path)}
    assert "adaptation.npz is damaged" in capsys.readouterr().err


def test_results_are_in_the_order_in_which_they_came(tmp_path):
    names = ("results", "results-2", "evaluation", "evaluation-2", "evaluation-10")
    for name in (*reversed(names), "results-old", "evaluations"):
        (tmp_path / f"{name}.json").touch()
    assert [path.stem for path in report.results_of(tmp_path)] == list(names)


def test_the_tasks_that_are_kept_are_the_first_held_out_ones(run):
    stored = np.load(run / "adaptation.npz")
    assert stored["Reptile/prediction"].shape == (3, 9, 50)
    assert stored["Reptile/wave"].shape == (3, 1, 50)  # the same at all points of the curve
    again = np.load(run / "evaluation-adaptation.npz")
    np.testing.assert_array_equal(stored["Reptile/wave"], again["Reptile/wave"])
