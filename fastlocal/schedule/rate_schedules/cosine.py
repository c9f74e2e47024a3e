"""Half a cosine from 1 in the first round or step to 0 after the last (Loshchilov and Hutter 2017, no restarts)."""

from __future__ import annotations

import math


def factor(number: int, total: int) -> float:
    """Return (1 + cos(pi (r - 1) / R)) / 2 in number r of R."""
    return (1 + math.cos(math.pi * (number - 1) / total)) / 2
