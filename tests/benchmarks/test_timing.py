"""Timing: arms take turns."""

import functools

from benchmarks import timing


def test_arms_take_turns_and_every_round_is_kept():
    calls = []
    measured = timing.interleaved(
        {name: functools.partial(calls.append, name) for name in "ab"}, repeats=3, seconds=0.0
    )
    assert "".join(calls) == "aabb" + "ab" * 3
    assert len(measured["a"]["ms"]) == 3
    assert timing.paired_ratio({"ms": [2.0, 9.0, 4.0]}, {"ms": [1.0, 1.0, 1.0]}) == 4.0


def test_a_fresh_process_prints_its_answer():
    assert timing.printed_by("import sys; print('first'); print(sys.argv[1:])", "x") == "['x']"
