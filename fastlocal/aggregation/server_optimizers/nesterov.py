"""Nesterov momentum on the differences, as DiLoCo's outer step (Douillard et al. 2023) and Hsu, Qi, Brown 2019.

    m <- server_momentum * m + (mean - x)        x <- x + server_lr * (mean - x + server_momentum * m)

DiLoCo's rate is 0.7 with momentum 0.9.
"""

from __future__ import annotations

from . import momentum


class Optimizer(momentum.Optimizer):
    """Nesterov momentum."""

    nesterov = True
