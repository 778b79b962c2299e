"""Budgets are equal in what they say."""

from benchmarks.comparison import outcomes


def test_budgets_are_equal_in_what_they_say():
    times = {"Reptile": 10.0, "FOMAML": 12.0, "MAML": 40.0}
    steps = lambda method, basis: outcomes.equal_steps(times, method, basis, 100)
    assert {steps(method, "meta steps") for method in times} == {100}
    assert (steps("Reptile", "time"), steps("FOMAML", "time")) == (400, 333)
    assert steps("Reptile", "gradient evaluations") == 220  # (5 + 1 + 5) / 5
    assert steps("MAML", "gradient evaluations") == steps("MAML", "time") == 100
