"""The page of the paper's results, from arms alone."""

import numpy as np

from benchmarks.paper import page
from reptile_jax.app import presets


def arm(row, transductive, non_transductive, **more):
    accuracy = {
        "transductive": {"mean": [0.2, transductive / 100], "ci95": [0.01, 0.002]},
        "non-transductive": {"mean": [0.2, non_transductive / 100], "ci95": [0.01, 0.003]},
    }
    settings = more.pop("settings", {})
    return {"settings": settings, "data": {"row": row, "accuracy": accuracy, **more}}


def test_rows_are_compared_with_the_paper_and_the_band_of_its_reruns():
    found = {
        "o15-seed0": arm("o15", 97.60, 95.50),
        "o15-seed1": arm("o15", 97.80, 95.30),
        "o15-100-steps-seed0": arm(None, 60.0, 50.0),  # no row of the paper's
        "o55-seed0": arm("o55", 99.60, 98.50),
    }
    lines = page.rows_table(found).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2] == (
        "| o15 | 95.39 ± 0.09 | 95.20 to 95.56 | 95.50 ± 0.30, 95.30 ± 0.30 | yes "
        "| o15-seed0, o15-seed1 |"
    )
    assert "97.60 ± 0.20, 97.80 ± 0.20 | yes" in lines[3]
    assert "98.50 ± 0.30 | 0.39 below" in lines[4]
    assert "99.60 ± 0.20 | 0.07 above" in lines[5]


def test_another_inner_state_has_rows_of_its_own():
    carry = arm("o15", 97.7, 95.4, settings={"inner_opt_state": "carry"})
    average = arm("o15", 97.3, 95.3, settings={"inner_opt_state": "average"})
    table = page.rows_table({"o15-carry-seed0": carry, "o15-seed0": average})
    lines = table.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| o15",
        "| o15, carry",
        "| o15t",
        "| o15t, carry",
    ]
    assert "| 97.70 ± 0.20 | yes | o15-carry-seed0 |" in lines[5]


def test_what_goes_beyond_is_under_the_paper():
    name, rest = "o15-balanced", "-balanced"
    steps = presets.BEYOND[name].meta_steps
    of = {"preset": name, "meta steps": steps, "settings": {"seed": 0}}
    carry = {**of, "settings": {"seed": 0, "inner_opt_state": "carry"}}
    balanced = {**of, "settings": {"seed": 0, "balanced_eval": True}}
    found = {
        f"o15{rest}-seed0": arm(None, 98.7, 98.1, **of),
        f"o120{rest}-seed0": arm(None, 95.0, 94.0, **of),
        f"o120{rest}-balanced-eval-seed0": arm(None, 97.0, 96.0, **balanced),
        f"o15{rest}-carry-seed0": arm(None, 50.0, 40.0, **carry),
        "o120-9-steps-seed0": arm(None, 30.0, 20.0, **{**of, "preset": "o120", "meta steps": 9}),
        "o15-seed0": arm("o15", 97.3, 95.3, preset="o15"),
    }
    lines = page.beyond_table(found).splitlines()
    assert len(lines) == 7
    assert "| 95.39 ± 0.09 | 97.68 ± 0.04 | 88.14 ± 0.15 | 89.43 ± 0.14 |" in lines[2]  # no o55
    assert lines[3].startswith("| o120, seed 0 | 9 |  |  | 20.00 ± 0.30 | 30.00 ± 0.20 |")
    cells = lines[4].split(" | ")
    assert cells[:4] == [f"| {name}, seed 0", f"{steps:,}", "98.10 ± 0.30", "98.70 ± 0.20"]
    assert cells[4:6] == ["94.00 ± 0.30", "95.00 ± 0.20"]
    assert lines[5].startswith(f"| {name}, carry, seed 0 | {steps:,} | 40.00 ± 0.30 |")
    cells = lines[6].split(" | ")
    assert cells[0] == f"| {name}, evaluated balanced, seed 0"
    assert cells[2:6] == ["", "", "96.00 ± 0.30", "97.00 ± 0.20"]
    assert page.beyond_table({"o15-seed0": found["o15-seed0"]}) == "Not measured yet."


def test_a_training_has_one_curve_however_it_is_evaluated():
    of = {"data": {"preset": "o120-balanced-tenth", "learning curve": {}}}
    names = ["o120-balanced-tenth-seed0", "o120-balanced-tenth-balanced-eval-seed0"]
    found = {name: of for name in (*names, "o15-balanced-tenth-seed0", "o120-balanced-tenth-seed1")}
    trainings = dict(page.by_training(found))
    assert {name: [*seeds] for name, seeds in trainings.items()} == {
        "o120-balanced-tenth": ["seed 0", "seed 1"]
    }


def test_the_sine_waves_interval_is_over_seeds():
    error = {"inner steps": [0, 32], "by seed": [[4.0, 0.1], [6.0, 0.3]]}
    figures = {"mean squared error": {"Reptile": error, "random": error}}
    lines = page.sinusoid_table({"batched": {"data": figures}}).splitlines()
    half = 12.706 * np.sqrt(2) / np.sqrt(2)  # the t quantile with one degree of freedom
    assert lines[0] == "| after SGD steps | 0 | 32 |"
    assert lines[2] == f"| Reptile, batched | 5.000 ± {half:.3f} | 0.200 ± {half / 10:.3f} |"
    assert lines[3].startswith("| random | ")


def test_scores_are_in_per_cent_with_their_intervals():
    curve = lambda mean, half: {"mean": [0.2, mean], "ci95": [0.1, half]}
    scores = {"transductive": curve(0.9, 0.01), "non-transductive": curve(0.8, 0.02)}
    arms = {"reset": {"data": {"scores": {"Reptile": scores}}}}
    row = page.policies_table(arms).splitlines()[2]
    assert row == '| `"reset"` | 90.00 ± 1.00 | 80.00 ± 2.00 |'
    assert page.scores_table(arms).splitlines()[2] == "| 90.00 ± 1.00 % | 80.00 ± 2.00 % |"
    assert page.scores_table({}) == "Not measured yet."
