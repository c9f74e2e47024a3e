"""Federated averaging, and Local SGD: the weighted mean of the clients (McMahan et al. 2017, Stich 2019).

x_i takes K_i local steps from x        x <- x + sum p_i (x_i - x)
"""

from __future__ import annotations

from ..config.schema import RunConfig
from ._base import Algorithm


class Method(Algorithm):
    """The plain mean."""

    def __init__(self, config: RunConfig) -> None:
        """Take the settings of a run."""
