"""What the chunks of each round are given: clients, samples and learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..data.sample_streams import Streams
from ..executors.round_plan import RoundPlan
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import Progress, RoundSchedule
from .lookahead import Lookahead


@dataclass
class Planner:
    """Plans of a run's rounds, chunk by chunk.

    clients: that this process trains        chunk: those resident at once        dtype, device: of the parameters
    index_device: where the data source takes the numbers of samples
    """

    progress: Progress
    streams: Streams
    clients: range
    chunk: int
    dtype: torch.dtype
    device: torch.device
    index_device: torch.device

    def rounds(self, at: TrainingCursor) -> Iterator[RoundSchedule]:
        """Those still to come from `at` on; the plans that follow are taken from the same."""
        self._rounds = Lookahead(self.progress.rounds(at.first_step, at.rounds_before))
        return self._rounds

    def chunks(self, done: Sequence[tuple[int, int]] = ()) -> list[range]:
        """The clients that are not `done`, [first, last + 1) each, as many at a time as are resident."""
        bounds = [self.clients.start, *(bound for pair in sorted(done) for bound in pair), self.clients.stop]
        return [
            range(first, min(first + self.chunk, end))
            for begin, end in zip(bounds[::2], bounds[1::2], strict=True)
            for first in range(begin, end, self.chunk)
        ]

    def rates(self, planned: RoundSchedule) -> list[float]:
        """The learning rate of each local step."""
        return [self.progress.learning_rate(planned.first_step + step) for step in range(planned.local_steps)]

    def plan(self, planned: RoundSchedule, clients: range, rates: list[float], rest: Sequence[range]) -> RoundPlan:
        """One chunk's round at the rates of `planned`; `rest` are the chunks that come after it."""
        sample_ids = self.streams.sample_ids(planned.first_step, planned.local_steps, clients)
        return RoundPlan(
            client_ids=torch.arange(clients.start, clients.stop, device=self.device),
            first_step=planned.first_step,
            learning_rates=torch.tensor(rates, dtype=self.dtype, device=self.device)[:, None].expand(-1, len(clients)),
            sample_ids=sample_ids.to(self.index_device),
            first_client=clients.start,
            following=lambda: self._following(planned, rest, rates),
        )

    def _following(self, planned: RoundSchedule, rest: Sequence[range], rates: list[float]) -> Iterator[RoundPlan]:
        """The plans of the round's other chunks and of the rounds after it."""
        later = self._rounds.later()
        yield from self._plans(planned, rest, rates)
        for upcoming in later:
            yield from self._plans(upcoming, self.chunks(), self.rates(upcoming))

    def _plans(self, planned: RoundSchedule, chunks: Sequence[range], rates: list[float]) -> Iterator[RoundPlan]:
        for place, clients in enumerate(chunks):
            yield self.plan(planned, clients, rates, chunks[place + 1 :])
