"""The page of the comparison, and the command line of its experiments."""

import numpy as np
import pytest

from benchmarks import records
from benchmarks.comparison import (
    contest,
    experiment,
    minibatch_overlap,
    outcomes,
    page,
    stability,
)

SIZE = contest.SIZES["tiny"]


def store_contest(path, reptile_gain):
    """Made figures of every arm: Reptile better on the sine waves by `reptile_gain`."""
    about = {"title": "Made", "command": "python -m benchmarks reptile_vs_maml"}
    store = lambda arm, settings, data: records.run(path, about, arm, settings, lambda: data)
    for name in stability.METHODS:
        error = np.full((2, 2, 2), 1.0)
        error[0, 0] = np.nan if name == "MAML" else 8.1 if name == "FOMAML" else 7.9
        store(stability.arm(name), stability.settings(name, SIZE), {"error": error, "zero": 4.0})
    for kind in outcomes.PROBLEMS:
        times = {"Reptile": 1.0, "FOMAML": 1.0, "MAML": 4.0}
        data = {name: {"median": ms, "ms": [ms] * 3} for name, ms in times.items()}
        store(f"{kind}-time", outcomes.time_settings(kind, SIZE), data)
        best = np.array([[9.0, 2.0, 3.0], [9.0, 3.0, 1.0]]) * (1 if kind == "sine" else -1)
        data = {"rates": [(0.1, 1), (0.2, 2)]}
        data["scores"] = dict.fromkeys(outcomes.SCORES[kind], best)
        for method in times:
            settings = outcomes.tuning_settings(kind, method, SIZE)
            store(f"{kind}-{method}-rates", settings, data)
        for method, of_method in outcomes.lengths(path, kind, SIZE).items():
            chosen = outcomes.choice(path, kind, method, SIZE)
            assert chosen["inner rate"] == 0.2
            assert set(chosen["point"].values()) == {2}
            gain = reptile_gain * (method == "Reptile") if kind == "sine" else 0
            value = np.tile([[0.5 - gain], [0.6 - 1.001 * gain]], 3)
            for steps in of_method:
                settings = outcomes.run_settings(kind, method, chosen, steps, SIZE)
                data = {"scores": dict.fromkeys(outcomes.SCORES[kind], value)}
                store(f"{kind}-{method}-{steps}", settings, data)


@pytest.mark.slow
def test_the_page_says_what_was_measured_and_what_was_not(tmp_path):
    docs = tmp_path / "docs" / "page.md"
    parts = page.parts(tmp_path, docs, "tiny")
    assert "holds**" not in parts["verdicts"]
    assert "Not measured yet, and in no verdict: stability-Reptile" in parts["verdicts"]
    assert "Not measured yet." in parts["equal budgets on sine waves"]
    path = experiment.record("reptile_vs_maml", "tiny", tmp_path)
    store_contest(path, reptile_gain=0.1)
    diverged = {name: d["diverged"].mean() for name, d in stability.stored(path, SIZE).items()}
    assert diverged == {"Reptile": 0, "Reptile, Adam outside": 0, "FOMAML": 0.25, "MAML": 0.25}
    page.draw(tmp_path, "tiny")
    parts = page.parts(tmp_path, docs, "tiny")
    verdict = lambda claim: parts["verdicts"].partition(f"| {claim} | **")[2].partition("**")[0]
    assert "in no verdict" not in parts["verdicts"]
    assert verdict("A meta step of MAML takes longer than one of Reptile") == "holds"
    assert verdict("Reptile does better than MAML after equal time") == "depends on"
    unseen = "does not hold: no difference seen"
    assert verdict("MAML does better than FOMAML after equal meta steps") == unseen
    assert verdict("Reptile diverges at fewer rates than MAML") == "holds"
    assert "0% against 25%" in parts["findings"]
    memory = "Reptile's and FOMAML's memory hardly grows with the number of inner steps"
    assert verdict(memory) == "not measured yet"
    written = "".join(parts.values())
    for picture in ("stability.png", "sine-error.png", "omniglot-transductive.png"):
        assert (path.parent / picture).stat().st_size > 1000
        assert f"](../comparison/tiny/{picture})" in written


def test_an_experiment_asks_for_the_data_and_runs_each_arm_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        minibatch_overlap.main([])
    assert "the following arguments are required: --data" in capsys.readouterr().err
    found = []

    def trial(asked):
        """A made-up experiment."""
        found.append(asked.run("a", {"size": asked.size}, lambda: {"x": len(found)})["data"])

    for _ in range(2):
        argv = ["--size", "full", "--out", str(tmp_path)]
        sizes = {"small": 1, "full": 2}
        assert experiment.main(argv, trial, sizes, "A trial", needs_data=False) == 0
    assert found == [{"x": 0}, {"x": 0}]
    content = records.read(tmp_path / "comparison" / "full" / "trial.json")
    assert content["command"] == "python -m benchmarks trial --size full"
    assert content["title"] == "A trial"
