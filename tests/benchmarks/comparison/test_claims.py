"""Verdicts follow from findings."""

import numpy as np

from benchmarks.comparison import claims


def test_a_verdict_follows_from_its_findings():
    verdict = lambda *answers: (
        claims.Claim("", "", [claims.Finding("", "", answer) for answer in answers]).verdict
    )
    assert verdict(claims.YES, claims.YES) == "holds"
    assert verdict(claims.YES, claims.OPEN) == "depends on"
    assert verdict(claims.YES, claims.NO) == "depends on"
    assert verdict(claims.NO, claims.OPEN) == "does not hold"
    assert verdict(claims.OPEN, claims.OPEN) == "does not hold: no difference seen"
    assert verdict() == "not measured yet"
    mean, half = claims.paired(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose((mean, half), (2.0, 4.302653 / np.sqrt(3)), rtol=1e-6)
