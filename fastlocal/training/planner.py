"""Plan the rounds of a run: the clients, samples and learning rates of each chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..data.sample_streams import SampleStreams
from ..data.unequal_streams import UnequalStreams
from ..executors.round_plan import RoundPlan
from ..params.client_stack import ClientRows, take
from ..schedule.cohort import ClientWeights, Cohort
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import Progress, RoundSchedule

T = TypeVar("T")


@dataclass
class Planner:
    """Plans the rounds of a run, chunk by chunk. A row is a place in the cohort of a round.

    Attributes:
        progress: The rounds and learning rates of the run.
        streams: The clients of each round and their samples.
        weights: The weights of the clients in the mean.
        population: The number of all clients.
        clients: The rows of a round that this process trains, or, with `kept`, the clients that it trains.
        kept: Whether clients keep their state, so that each always trains on the same process.
        chunk: The number of clients that are resident at once.
        dtype: The dtype of the parameters.
        device: The device of the parameters.
        index_device: The device on which the data source takes sample numbers.
    """

    progress: Progress
    streams: SampleStreams
    weights: ClientWeights
    population: int
    clients: range
    kept: bool
    chunk: int
    dtype: torch.dtype
    device: torch.device
    index_device: torch.device

    def rounds(self, cursor: TrainingCursor) -> Iterator[RoundSchedule]:
        """Iterate over the rounds from `cursor` on. `plan` looks ahead in the same iterator."""
        self._rounds = _Lookahead(self.progress.rounds(cursor.first_step, cursor.rounds_before))
        return self._rounds

    def cohort(self, schedule: RoundSchedule) -> Cohort:
        """Return the clients of a round."""
        return self.streams.cohort(schedule.first_step)

    def rows(self, schedule: RoundSchedule) -> range:
        """Return the rows of a round that this process trains."""
        ids = self.cohort(schedule).ids
        if self.kept:
            first, end = torch.searchsorted(ids, torch.tensor([self.clients.start, self.clients.stop])).tolist()
            return range(first, end)
        return range(min(self.clients.start, len(ids)), min(self.clients.stop, len(ids)))

    def state_rows(self, schedule: RoundSchedule, rows: ClientRows) -> ClientRows:
        """Return the places of rows of a round in the ClientStore."""
        if not self.kept:
            return rows
        ids = take(self.cohort(schedule).ids, rows)
        if isinstance(rows, Tensor):
            return ids
        if len(ids) == 0:
            return range(self.clients.start, self.clients.start)
        first, last = int(ids[0]), int(ids[-1])
        return range(first, last + 1) if last - first + 1 == len(ids) else ids

    def next_state_rows(self, schedule: RoundSchedule, rest: Sequence[ClientRows]) -> ClientRows | None:
        """Return the places in the ClientStore of the next chunk, or None if the next round has none.

        Args:
            schedule: The round of the chunk before it.
            rest: The chunks of this round after that.
        """
        if not rest:
            upcoming = next(self._rounds.later(), None)
            if upcoming is None:
                return None
            schedule, rest = upcoming, self.chunks(upcoming)
        return self.state_rows(schedule, rest[0]) if rest else None

    def chunks(self, schedule: RoundSchedule, done: Sequence[Sequence[int]] = ()) -> list[ClientRows]:
        """Split the rows of a round that this process trains into chunks.

        Clients of unequal steps are split in the order of their steps, those with the most first.

        Args:
            schedule: The round.
            done: Rows of finished chunks, which are left out: ranges, or any rows of clients of unequal steps.
        """
        rows = self.rows(schedule)
        if isinstance(self.streams, UnequalStreams):
            order = self._by_steps(self.streams, schedule, rows, done)
            return list(order.split(self.chunk)) if len(order) else []
        filled = sorted((rows.start, rows.stop) for rows in done if isinstance(rows, range) and rows)
        bounds = [rows.start, *(bound for pair in filled for bound in pair), rows.stop]
        return [
            range(first, min(first + self.chunk, end))
            for begin, end in zip(bounds[::2], bounds[1::2], strict=True)
            for first in range(begin, end, self.chunk)
        ]

    def _by_steps(
        self, streams: UnequalStreams, schedule: RoundSchedule, rows: range, done: Sequence[Sequence[int]]
    ) -> Tensor:
        """Return the rows that are not done, int64, by descending steps; of these, clients of one size together."""
        left = torch.ones(len(self.cohort(schedule)), dtype=torch.bool)
        for finished in done:
            left[list(finished)] = False
        waiting = torch.arange(rows.start, rows.stop)
        waiting = waiting[left[waiting]]
        by_size = waiting[streams.owned(schedule.first_step)[waiting].argsort(descending=True, stable=True)]
        return by_size[streams.steps(schedule.first_step)[by_size].argsort(descending=True, stable=True)]

    def most_steps(self, schedule: RoundSchedule) -> int:
        """Return the most steps of a client of a round."""
        steps = self.streams.steps(schedule.first_step)
        if steps is None:
            return schedule.local_steps
        return int(steps.max()) if len(steps) else 0

    def rates(self, schedule: RoundSchedule) -> list[float]:
        """Return the learning rate of each local step of a round."""
        return [self.progress.learning_rate(schedule.first_step + step) for step in range(schedule.local_steps)]

    def plan(
        self, schedule: RoundSchedule, rows: ClientRows, rates: list[float], rest: Sequence[ClientRows]
    ) -> RoundPlan:
        """Plan the round of one chunk.

        Args:
            schedule: The round.
            rows: The rows of the chunk, at least one.
            rates: The learning rate of each local step.
            rest: The chunks of this round after this one.
        """
        sizes: Tensor | None = None
        if isinstance(rows, range):
            sample_ids = self.streams.sample_ids(schedule.first_step, schedule.local_steps, rows)
        else:
            assert isinstance(self.streams, UnequalStreams), "as in chunks"
            sample_ids, sizes = self.streams.batches(schedule.first_step, rows)
        return RoundPlan(
            client_ids=take(self.cohort(schedule).ids, rows).to(self.device),
            first_step=schedule.first_step,
            learning_rates=torch.tensor(
                rates[: len(sample_ids)], dtype=self.dtype, device=self.device
            )[:, None].expand(-1, len(rows)),
            sample_ids=sample_ids.to(self.index_device),
            first_row=int(rows[0]),
            following=lambda: self._following(schedule, rest, rates),
            # steps of all rows with whole batches are those of clients that take the same steps
            sizes=None if sizes is None or bool((sizes == sample_ids.shape[-1]).all()) else sizes,
        )

    def _following(
        self, schedule: RoundSchedule, rest: Sequence[ClientRows], rates: list[float]
    ) -> Iterator[RoundPlan]:
        """Iterate over the plans of the round's remaining chunks and of the rounds after it."""
        later = self._rounds.later()
        yield from self._plans(schedule, rest, rates)
        for upcoming in later:
            yield from self._plans(upcoming, self.chunks(upcoming), self.rates(upcoming))

    def _plans(self, schedule: RoundSchedule, chunks: Sequence[ClientRows], rates: list[float]) -> Iterator[RoundPlan]:
        for place, rows in enumerate(chunks):
            yield self.plan(schedule, rows, rates, chunks[place + 1 :])


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
