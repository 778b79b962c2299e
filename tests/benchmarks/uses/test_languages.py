"""The use of languages: who is trained on, tested and chosen with, and what the table says."""

import json

import numpy as np
from examples.languages import LISTS

from benchmarks.uses import languages

WORDS = {name: np.zeros(1) for name in LISTS}


def test_a_seed_tests_languages_that_it_neither_trains_on_nor_chooses_with():
    tested = set()
    for seed in range(10):
        training, test = languages.split(WORDS, seed)
        assert (len(training), len(test)) == (12, 4)
        assert {*training, *test, *languages.VALIDATION} == {*WORDS}
        assert languages.split(WORDS, seed)[1].keys() == test.keys()
        tested |= {*test}
    assert len(tested) > 12


def test_the_lowest_bits_of_validation_choose_the_training_and_the_rate(tmp_path):
    names = [*languages.CANDIDATES[languages.JOINT]]
    bits = ({"0.0005": 3.2, "0.001": 3.1}, {"0.0005": 2.9, "0.001": 3.0}, {"0.0005": 4.0})
    arms = [
        {"arm": f"{languages.JOINT}, {name}", "run": 1, "data": {"after": after}}
        for name, after in zip(names, bits, strict=True)
    ]
    path = tmp_path / "choice.json"
    path.write_text(json.dumps({"arms": arms}))
    how, rate, name = languages.chosen(path, languages.JOINT)
    assert (rate, name) == (0.0005, names[1])
    assert how == languages.CANDIDATES[languages.JOINT][name]


def test_gains_are_paired_by_seed():
    of = lambda *seeds: [{"A": [bits, bits], "B": [bits + 2, bits]} for bits in seeds]
    found = {
        languages.REPTILE: of(3.0, 4.0, 5.0),
        languages.JOINT: of(3.1, 4.1, 5.1),
        languages.SCRATCH: of(4.0, 6.0, 8.0),
    }
    rows = {name: cells for name, *cells in languages.tabulated(found)}
    assert rows["Reptile"] == ["5.000 ± 2.484", "4.000 ± 2.484"]  # 4.303 / √3
    assert rows["Reptile, less joint training"] == ["-0.100 ± 0.000"] * 2
    assert rows["Reptile, less no training"] == ["-2.000 ± 2.484"] * 2
