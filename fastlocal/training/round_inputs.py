"""Rows, rates and weights of a round."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..algorithms import RoundWork
from ..schedule.rounds import RoundSchedule

if TYPE_CHECKING:
    from .planner import Planner


class RoundInputs:
    """Rows, rates and weights of a round, each computed when it is first asked for."""

    def __init__(self, planner: Planner, schedule: RoundSchedule) -> None:
        self._planner, self._schedule = planner, schedule

    def compute(self) -> None:
        """Compute all of it ahead."""
        _ = self.rows, self.work, self.weights

    @functools.cached_property
    def rates(self) -> list[float]:
        """Learning rate of each local step."""
        first, steps = self._schedule.first_step, self._schedule.local_steps
        return [self._planner.progress.learning_rate(first + step) for step in range(steps)]

    @functools.cached_property
    def rows(self) -> range:
        """Rows that this process trains."""
        ids, own = self._planner.cohort(self._schedule).ids, self._planner.clients
        if self._planner.kept:
            first, end = torch.searchsorted(ids, torch.tensor([own.start, own.stop])).tolist()
            return range(first, end)
        return range(min(own.start, len(ids)), min(own.stop, len(ids)))

    @functools.cached_property
    def work(self) -> RoundWork:
        """Steps, rates and weights for algorithms."""
        cohort, steps = self._planner.cohort(self._schedule), self._planner.streams.steps(self._schedule.first_step)
        steps = torch.full((len(cohort),), len(self.rates)) if steps is None else steps
        shares = self._planner.weights.shares(cohort)
        return RoundWork(steps, self.rates, shares, len(cohort), self._planner.population)

    @functools.cached_property
    def weights(self) -> Tensor | None:
        """Weights of the clients in the mean, float64 [clients] with sum 1, or None for equal weights."""
        cohort = self._planner.cohort(self._schedule)
        return self._planner.weights.of(cohort) if len(cohort) else None
