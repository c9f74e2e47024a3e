"""The quadratic synchronization rule: H of a round follows from its learning rate.

Gu, Lyu, Arora, Zhang, Huang, "A Quadratic Synchronization Rule for Distributed Deep Learning", ICLR 2024.
"""

from __future__ import annotations

import math

from ..common.errors import UsageError
from ..config.schema import RunConfig
from .phases import Phase
from .rounds import Progress

ROUNDING = 1e-9
"""Relative tolerance of (alpha / rate)^2 below a whole number: 0.3 / 0.1 is 2.9999999999999996 in floating point."""
UNBOUNDED = 2**31
"""H of a rate at or near 0."""


def quadratic_steps(rate: float, alpha: float, least: int) -> int:
    """Return H = max(least, floor((alpha / rate)^2)), at most UNBOUNDED."""
    ratio = alpha / rate if rate > 0 else math.inf
    return max(least, math.floor(min(ratio * ratio * (1 + ROUNDING), UNBOUNDED)))


class QuadraticRounds(Progress):
    """Rounds whose H is set right after averaging, from the rate of the round's first step.

        H = max(h_min, floor((alpha / rate)^2)), at most the steps that are left

    A round that begins within the warm-up has the H of the rate right after it, as the paper recommends. Before
    --post-local-from H is 1. Rates decay at the ends of epochs, within a round if need be, and no counter restarts.
    """

    def __init__(self, config: RunConfig) -> None:
        schedule = config.schedule
        assert schedule.qsr_alpha is not None, "validation.py requires it"
        self._alpha, self._least = schedule.qsr_alpha, schedule.h_min
        super().__init__(config)

    @property
    def label(self) -> str:
        """H in the names of files."""
        return "H=qsr"

    @property
    def leftover(self) -> int:
        """Local steps at the end of the run that are not averaged: none, as the last round ends with the run."""
        return 0

    def count(self) -> int:
        """Return the number of rounds that `rounds` yields."""
        step = number = 0
        while step < self.total_steps:
            step, number = self._next_average(step), number + 1
        return number

    def local_steps(self, step: int) -> int:
        """Return H of a round that begins at local step `step`, were it not for the end of the run."""
        if step < self.post_local_steps:
            return 1
        return quadratic_steps(self.learning_rate(max(step, self.warm_up.steps)), self._alpha, self._least)

    def _next_average(self, step: int) -> int:
        """Return the end of the round that begins at `step`."""
        return min(step + self.local_steps(step), self.total_steps)

    def _end_of_round(self, comm_round: int) -> int:
        end = 0
        for number in range(1, comm_round + 1):
            steps = self.local_steps(end)
            if steps >= UNBOUNDED:
                raise UsageError(
                    f"--rounds {comm_round}: with --sync qsr round {number} at rate {self.learning_rate(end):g} would "
                    "not end; give --epochs, or a greater rate"
                )
            end += steps
        return end

    def _phase_round(self, comm_round: int, phase: Phase) -> int:
        return comm_round

    def _iteration(self, end: int, comm_round: int, phase: Phase) -> int:
        return end
