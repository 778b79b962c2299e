"""Clients of federated averaging: who they are, and a run on them, end to end and small."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from reptile_jax.app import cli, experiments
from reptile_jax.app.config import ClientsConfig
from reptile_jax.app.experiments import clients

OPTIONS = [
    *("--meta-steps", "6", "--steps-per-dispatch", "3", "--meta-batch", "3"),
    *("--inner-batch", "4", "--eval-batch", "4", "--eval-steps", "10", "--eval-tasks", "12"),
]
ALPHABETS = [f"alphabet{number // 4}" for number in range(40)]  # ten of four characters


@pytest.fixture(scope="module")
def drawings():
    """Characters of an alphabet share a pixel pattern; person and character add a little noise."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 2, (10, 1, 28, 28, 1)).repeat(4, 0)
    noise = rng.integers(0, 60, (40, clients.PEOPLE, 28, 28, 1))
    return np.uint8(180 * pattern + noise)


def test_every_drawing_is_one_clients_and_no_person_is_on_both_sides(drawings):
    parts = [
        clients.clients_of(drawings, ALPHABETS, people)
        for people in (range(clients.TRAINING_PEOPLE), range(clients.TRAINING_PEOPLE, 20))
    ]
    found = [image.tobytes() for part in parts for own in part.values() for image in own.inputs]
    assert sorted(found) == sorted(image.tobytes() for image in drawings.reshape(-1, 28 * 28))
    people = [{int(name.rpartition(" ")[2]) for name in part} for part in parts]
    assert people == [set(range(1, 16)), set(range(16, 21))]
    for own in (own for part in parts for own in part.values()):
        labels, counts = np.unique(own.targets, return_counts=True)
        assert 2 <= len(labels) <= 5
        assert set(counts.tolist()) == {4}  # all characters of its alphabets
    again = clients.clients_of(drawings, ALPHABETS, range(15))
    jax.tree.map(np.testing.assert_array_equal, again, parts[0])


def test_half_of_a_clients_drawings_is_given_and_the_other_half_asked(drawings):
    own = dict(list(clients.clients_of(drawings, ALPHABETS, [3]).items()))
    task = clients.halved(own, batch_size=3, steps=40)
    for place, (images, _) in enumerate(own.values()):
        (given, is_given), (asked, is_asked) = jax.tree.map(
            lambda leaf, at=place: np.asarray(leaf)[at], (task.support, task.query)
        )
        images_of = lambda inputs, mask: {x.tobytes() for x in np.rint(255 * inputs[mask])}
        sets = [images_of(given.inputs, is_given), images_of(asked.inputs, is_asked)]
        assert not sets[0] & sets[1]
        assert sets[0] | sets[1] == {x.tobytes() for x in images.astype(np.float32)}


@pytest.fixture(scope="module")
def run(drawings, tmp_path_factory):
    """The folder of a small run, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("clients") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr(clients, "load", lambda data: (drawings, ALPHABETS))
        command = ["train", "clients", "--data", str(folder.parent), "--out", str(folder)]
        assert cli.main([*command, *OPTIONS]) == 0
    return folder, printed.getvalue()


@pytest.mark.slow
def test_a_run_reports_every_held_out_client(run):
    folder, printed = run
    results = json.loads((folder / "results.json").read_text())
    assert set(results["scores"]) == set(results["spread"]) == {"Reptile", "random", "pooled"}
    for label, found in results["spread"].items():
        curve = results["scores"][label]["accuracy"]
        assert curve["inner steps"] == [0, 2, 4, 6, 8, 10]
        np.testing.assert_allclose(found["mean"], [curve["mean"][0], curve["mean"][-1]])
        assert found["inner steps"] == [0, 10]
        assert np.all(np.array(found["worst_tenth"]) <= found["mean"])
    ours, random = (results["spread"][label] for label in ("Reptile", "random"))
    assert ours["mean"][1] > max(0.6, random["mean"][0])
    assert ours["mean"][0] > random["mean"][0]
    assert "worst tenth" in printed
    assert f"{100 * ours['worst_tenth'][1]:.1f}" in printed
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["first_loss"] > 1  # small clients start late: their empty steps do not count
    with np.load(folder / "adaptation.npz") as arrays:
        accuracy = arrays["Reptile/accuracy"]
        assert len(accuracy) == 12
        np.testing.assert_allclose(accuracy[:, -1].mean(), ours["mean"][1], rtol=1e-5)
    with Image.open(folder / "adaptation.png") as picture:
        assert picture.width > 1000
    names = json.loads((folder / "clients.json").read_text())
    assert len(names["test"]) >= 12
    assert not set(names["train"]) & set(names["test"])
    assert "worst tenth" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_run_is_scored_again_and_drawn_again(run, drawings, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(clients, "load", lambda data: (drawings, ALPHABETS))
    command = ["evaluate", str(folder), "--data", str(folder.parent)]
    assert cli.main([*command, "--eval-rate", "0.1", "--eval-tasks", "5"]) == 0
    results = json.loads((folder / "evaluation.json").read_text())
    assert results["tasks"] == 5
    assert list(results["spread"]) == ["Reptile"]
    assert cli.main(["plot", str(folder)]) == 0
    assert (folder / "evaluation-adaptation.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sgd", "momentum", "adam"])
def test_each_server_learns(server, drawings, monkeypatch):
    monkeypatch.setattr(clients, "load", lambda data: (drawings, ALPHABETS))
    rate = {"sgd": 1.0, "momentum": 0.3, "adam": 0.01}[server]
    config = ClientsConfig(server=server, meta_rate=rate, inner_batch=8, eval_tasks=2)
    experiment = clients.build(config, None, "data")
    state = experiment.first_state()
    tasks = experiment.training_tasks.all(jax.random.key(0))
    losses = []
    for _ in range(4):
        state, info = experiment.learner.step(state, tasks)
        losses.append(float(info.losses[:, -1].mean()))
    assert losses[-1] < losses[0]


def test_more_clients_than_there_are_and_runs_without_data_are_refused(capsys):
    assert cli.main(["train", "clients", "--data", "data", "--eval-tasks", "77"]) == 1
    assert "eval_tasks is at most 76, got 77" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give the data set's folder with --data"):
        experiments.build(ClientsConfig(), None)
