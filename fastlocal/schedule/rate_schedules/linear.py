"""A line from 1 in the first round to 0 after the last."""

from __future__ import annotations


def factor(round_number: int, rounds: int) -> float:
    """Return 1 - (r - 1) / R in round r of R."""
    return 1 - (round_number - 1) / rounds
