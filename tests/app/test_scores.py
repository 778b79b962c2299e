"""What a table shows of a curve."""

from reptile_jax.app import scores


def test_a_long_curve_is_shown_at_powers_of_two_or_of_ten():
    few = lambda number: [int(step) for step in scores._few(range(number))]
    assert few(8) == list(range(8))
    assert few(33) == [0, 1, 2, 4, 8, 16, 32]
    assert few(41) == [0, 1, 2, 4, 8, 16, 32, 40]
    assert few(101) == [0, 1, 10, 100]
    assert few(151) == [0, 1, 10, 100, 150]
