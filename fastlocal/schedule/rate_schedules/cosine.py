"""Half a cosine from 1 in the first round to 0 after the last (Loshchilov and Hutter 2017, without restarts)."""

from __future__ import annotations

import math


def factor(round_number: int, rounds: int) -> float:
    """Return (1 + cos(pi (r - 1) / R)) / 2 in round r of R."""
    return (1 + math.cos(math.pi * (round_number - 1) / rounds)) / 2
