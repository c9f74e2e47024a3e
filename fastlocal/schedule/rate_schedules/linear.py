"""A line from 1 in the first round or step to 0 after the last."""

from __future__ import annotations


def factor(number: int, total: int) -> float:
    """Return 1 - (r - 1) / R in number r of R."""
    return 1 - (number - 1) / total
