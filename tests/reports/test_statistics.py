"""Statistics over seeds, compared with SciPy's and with printed tables of Student's t."""

from __future__ import annotations

import math

import pytest

from fastlocal.reports.statistics import Summary, paired_difference, summarise, t_quantile

TABLE = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 10): 2.228, (0.95, 5): 2.015, (0.995, 30): 2.750}
"""{(probability, degrees of freedom): quantile} as textbooks print them."""


def test_quantiles_of_students_t() -> None:
    for (probability, freedom), expected in TABLE.items():
        assert t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)
        assert t_quantile(1 - probability, freedom) == pytest.approx(-expected, abs=5e-4)
    assert t_quantile(0.5, 3) == 0.0
    for probability, freedom in ((0.0, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError):
            t_quantile(probability, freedom)


@pytest.mark.needs("scipy")
def test_quantiles_are_those_of_scipy() -> None:
    from scipy import stats

    for freedom in (0.5, 1, 2, 3, 4, 7, 19, 20, 99, 1000, 100_000):
        for probability in (1e-6, 0.025, 0.3, 0.6, 0.975, 0.9999):
            expected = stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-10), (probability, freedom)


@pytest.mark.needs("scipy")
def test_intervals_are_those_of_scipy() -> None:
    from scipy import stats

    values, reference = [0.91, 0.93, 0.905, 0.92], [0.9, 0.935, 0.88, 0.915]
    found = summarise(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    expected = (4, stats.tmean(values), stats.tstd(values), low, high)
    assert (found.n, found.mean, found.deviation, found.low, found.high) == pytest.approx(expected, rel=1e-12)

    pairs = paired_difference(dict(enumerate(values)), dict(enumerate(reference)))
    interval = stats.ttest_rel(values, reference).confidence_interval()
    assert pairs is not None and (pairs.low, pairs.high) == pytest.approx(tuple(interval), rel=1e-10)


def test_few_values_and_values_that_are_not_finite() -> None:
    assert summarise([]) is None
    assert summarise([0.5]) == Summary(1, 0.5, None, None, None)
    assert summarise([0.5, 0.5]) == Summary(2, 0.5, 0.0, 0.5, 0.5)
    spoilt = summarise([0.5, math.nan, 0.7])
    assert spoilt is not None and spoilt.n == 3 and math.isnan(spoilt.mean) and math.isnan(spoilt.low or 0.0)


def test_pairs_are_the_common_seeds() -> None:
    found = paired_difference({0: 1.0, 1: 3.0, 2: 9.0}, {1: 1.0, 0: 0.5, 7: 100.0})
    assert found is not None and (found.n, found.mean) == (2, 1.25)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
