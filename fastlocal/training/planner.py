"""Plan the rounds of a run: the clients, samples and learning rates of each chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..data.sample_streams import Streams
from ..executors.round_plan import RoundPlan
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import Progress, RoundSchedule

T = TypeVar("T")


@dataclass
class Planner:
    """Plans the rounds of a run, chunk by chunk.

    Attributes:
        progress: The rounds and learning rates of the run.
        streams: The samples of each client.
        clients: The clients that this process trains.
        chunk: The number of clients that are resident at once.
        dtype: The dtype of the parameters.
        device: The device of the parameters.
        index_device: The device on which the data source takes sample numbers.
    """

    progress: Progress
    streams: Streams
    clients: range
    chunk: int
    dtype: torch.dtype
    device: torch.device
    index_device: torch.device

    def rounds(self, cursor: TrainingCursor) -> Iterator[RoundSchedule]:
        """Iterate over the rounds from `cursor` on. `plan` looks ahead in the same iterator."""
        self._rounds = _Lookahead(self.progress.rounds(cursor.first_step, cursor.rounds_before))
        return self._rounds

    def chunks(self, done: Sequence[tuple[int, int]] = ()) -> list[range]:
        """Split the clients outside the ranges [first, last + 1) of `done` into chunks."""
        bounds = [self.clients.start, *(bound for pair in sorted(done) for bound in pair), self.clients.stop]
        return [
            range(first, min(first + self.chunk, end))
            for begin, end in zip(bounds[::2], bounds[1::2], strict=True)
            for first in range(begin, end, self.chunk)
        ]

    def rates(self, schedule: RoundSchedule) -> list[float]:
        """Return the learning rate of each local step of a round."""
        return [self.progress.learning_rate(schedule.first_step + step) for step in range(schedule.local_steps)]

    def plan(self, schedule: RoundSchedule, clients: range, rates: list[float], rest: Sequence[range]) -> RoundPlan:
        """Plan the round of one chunk.

        Args:
            schedule: The round.
            clients: The clients of the chunk.
            rates: The learning rate of each local step.
            rest: The chunks of this round after this one.
        """
        sample_ids = self.streams.sample_ids(schedule.first_step, schedule.local_steps, clients)
        return RoundPlan(
            client_ids=torch.arange(clients.start, clients.stop, device=self.device),
            first_step=schedule.first_step,
            learning_rates=torch.tensor(rates, dtype=self.dtype, device=self.device)[:, None].expand(-1, len(clients)),
            sample_ids=sample_ids.to(self.index_device),
            first_client=clients.start,
            following=lambda: self._following(schedule, rest, rates),
        )

    def _following(self, schedule: RoundSchedule, rest: Sequence[range], rates: list[float]) -> Iterator[RoundPlan]:
        """Iterate over the plans of the round's remaining chunks and of the rounds after it."""
        later = self._rounds.later()
        yield from self._plans(schedule, rest, rates)
        for upcoming in later:
            yield from self._plans(upcoming, self.chunks(), self.rates(upcoming))

    def _plans(self, schedule: RoundSchedule, chunks: Sequence[range], rates: list[float]) -> Iterator[RoundPlan]:
        for place, clients in enumerate(chunks):
            yield self.plan(schedule, clients, rates, chunks[place + 1 :])


class _Lookahead(Generic[T]):
    """An iterator that can be read ahead."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._upcoming: deque[T] = deque()
        self._count = 0

    def __iter__(self) -> _Lookahead[T]:
        return self

    def __next__(self) -> T:
        item = self._upcoming.popleft() if self._upcoming else next(self._items)
        self._count += 1
        return item

    def later(self) -> Iterator[T]:
        """Iterate over the remaining items without consuming them, skipping items consumed meanwhile."""
        place = self._count
        while True:
            place = max(place, self._count)
            while len(self._upcoming) <= place - self._count:
                item = next(self._items, None)
                if item is None:
                    return
                self._upcoming.append(item)
            yield self._upcoming[place - self._count]
            place += 1
