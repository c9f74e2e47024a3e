"""Batches of a streaming source for steps that are replayed."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from ..data.sources.base import Batch
from .base import LocalProblem
from .round_plan import RoundPlan

StreamedBatch: TypeAlias = tuple[Batch, Tensor]
"""A batch of a streaming source, and the targets of the loss."""


class StreamedBatches:
    """The batches of a round of a streaming source, of which the first may be asked for twice."""

    def __init__(self, problem: LocalProblem, plan: RoundPlan) -> None:
        self._problem, self._plan = problem, plan
        self._last: tuple[int, StreamedBatch] | None = None

    def at(self, step: int) -> StreamedBatch:
        """Return the batch of a step: the last one again, or the next."""
        if self._last is None or self._last[0] != step:
            self._last = step, self._problem.batch(self._plan, step, slice(None))
        return self._last[1]
