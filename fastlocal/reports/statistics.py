"""Statistics over the seeds of a setting: mean, deviation, t-interval, and paired differences of two settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

CONFIDENCE = 0.95
"""Confidence level of every interval."""
TERMS = 500
"""Terms of the continued fraction at most; it needs about the square root of its larger parameter."""


T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """Statistics of the values of one setting.

    Attributes:
        n: Number of values.
        mean: Their mean.
        deviation: Standard deviation with n - 1 in the denominator; None for one value.
        low: Lower end of the interval of the mean at `CONFIDENCE`; None for one value.
        high: Upper end of it.
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary | None:
    """Summarise values; None without any. A value that is not finite makes all statistics NaN.

    The interval is that of Student's t: mean +- t(n - 1) deviation / sqrt(n).
    """
    n = len(values)
    if n == 0:
        return None
    if not all(map(math.isfinite, values)):
        deviation = math.nan if n > 1 else None
        return Summary(n, math.nan, deviation, deviation, deviation)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * deviation / math.sqrt(n)
    return Summary(n, mean, deviation, mean - half, mean + half)


def paired_difference(values: Mapping[Hashable, float], reference: Mapping[Hashable, float]) -> Summary | None:
    """Summarise value minus reference over the seeds that both have; None if there is none.

    Runs of one seed share their random numbers, so that the differences vary less than the values.

    Args:
        values: {seed: value} of a setting.
        reference: {seed: value} of the setting that it is compared with.
    """
    return summarise([values[seed] - reference[seed] for seed in values if seed in reference])


@lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution, to 1e-10 of itself for up to 1e5 degrees of freedom.

    Args:
        probability: Between 0 and 1, both excluded.
        freedom: Degrees of freedom, above 0.
    """
    if not (0 < probability < 1 and freedom > 0):
        raise ValueError(f"no quantile of {probability} with {freedom} degrees of freedom")
    tail = min(probability, 1 - probability)
    if tail == 0.5:
        return 0.0

    def excess(t: float) -> float:
        return t_tail(t, freedom) - tail

    high = 1.0
    while excess(high) > 0:
        high *= 2
    size = _root(excess, 0.0, high)
    return size if probability > 0.5 else -size


def t_tail(t: float, freedom: float) -> float:
    """Return the probability that Student's t exceeds `t`, which is 0 or more."""
    return 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for x in [0, 1].

    The continued fraction DLMF 8.17.22, which converges fast for x < (a + 1) / (a + b + 2); else 1 - I_{1-x}(b, a).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return 1 + d1 / (1 + d2 / (1 + ...)) by the modified algorithm of Lentz."""
    tiny = 1e-300
    fraction = numerator = 1.0
    denominator = 0.0
    for term in range(1, TERMS):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / ((1 + d * denominator) or tiny)
        numerator = (1 + d / numerator) or tiny
        step = numerator * denominator
        fraction *= step
        if abs(step - 1) < 1e-15:
            break
    return fraction


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the zero of a falling function between `low` and `high`, by bisection to the last bits."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high) or high - low < 1e-14 * high:
            return middle
        if function(middle) > 0:
            low = middle
        else:
            high = middle


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
