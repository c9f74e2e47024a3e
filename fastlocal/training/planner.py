"""Plan the rounds of a run: the clients, samples and learning rates of each chunk."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from ..data.sample_streams import SampleStreams
from ..data.unequal_streams import UnequalStreams
from ..executors.round_plan import RoundPlan
from ..params.client_stack import ClientRows, take
from ..schedule.cohort import ClientWeights, Cohort
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import Progress, RoundSchedule
from .round_inputs import RoundInputs

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

    def __post_init__(self) -> None:
        self._ahead: tuple[int, ClientRows, RoundPlan] | None = None
        self._inputs: dict[int, RoundInputs] = {}

    def rounds(self, cursor: TrainingCursor) -> Iterator[RoundSchedule]:
        """Iterate over the rounds from `cursor` on. `plan` looks ahead in the same iterator."""
        self._rounds = _Lookahead(self.progress.rounds(cursor.first_step, cursor.rounds_before))
        return self._rounds

    def inputs(self, schedule: RoundSchedule) -> RoundInputs:
        """Return what a round begins with."""
        inputs = self._inputs.get(schedule.first_step)
        if inputs is None:
            inputs = RoundInputs(self, schedule)
            # that of the next round is made while this one trains
            self._inputs = dict(list(self._inputs.items())[-2:]) | {schedule.first_step: inputs}
        return inputs

    def cohort(self, schedule: RoundSchedule) -> Cohort:
        """Return the clients of a round."""
        return self.streams.cohort(schedule.first_step)

    def rows(self, schedule: RoundSchedule) -> range:
        """Return the rows of a round that this process trains."""
        return self.inputs(schedule).rows

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
        schedule, rest = self._next_chunks(schedule, rest)
        return self.state_rows(schedule, rest[0]) if rest else None

    def _next_chunks(
        self, schedule: RoundSchedule, rest: Sequence[ClientRows]
    ) -> tuple[RoundSchedule, Sequence[ClientRows]]:
        """Return the rest of a round, or, if there is none, the chunks of the next one, which may be none either."""
        if not rest:
            for upcoming in self._rounds.later():
                return upcoming, self.chunks(upcoming)
        return schedule, rest

    def chunks(self, schedule: RoundSchedule, done: Sequence[Sequence[int]] = ()) -> list[ClientRows]:
        """Split the rows of a round that this process trains into chunks, as few and as equal as can be.

        Clients of unequal steps are split in the order of their steps, those with the most first.

        Args:
            schedule: The round.
            done: Rows of finished chunks, which are left out: ranges, or any rows of clients of unequal steps.
        """
        rows = self.rows(schedule)
        if isinstance(self.streams, UnequalStreams):
            order = self._by_steps(self.streams, schedule, rows, done)
            return list(order.split(self._sizes(len(order)))) if len(order) else []
        filled = sorted((rows.start, rows.stop) for rows in done if isinstance(rows, range) and rows)
        bounds = [rows.start, *(bound for pair in filled for bound in pair), rows.stop]
        return [
            range(first, end)
            for begin, stop in zip(bounds[::2], bounds[1::2], strict=True)
            for first, end in itertools.pairwise(itertools.accumulate(self._sizes(stop - begin), initial=begin))
        ]

    def _sizes(self, rows: int) -> list[int]:
        """Return the sizes of the chunks of so many rows, the greater ones first: 4, 3, 3 of 10 for chunks of 4."""
        count = -(-rows // self.chunk)
        return [rows // count + (place < rows % count) for place in range(count)]

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
        return self.inputs(schedule).rates

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
        if self._ahead is not None:
            first_step, planned, plan = self._ahead
            if first_step == schedule.first_step and _are_same(planned, rows):
                return plan
        return self._plan(schedule, rows, rates, rest)

    def plan_ahead(self, schedule: RoundSchedule, rest: Sequence[ClientRows], rates: list[float]) -> None:
        """Make the plan of the next chunk, which `plan` returns then; meant for the time in which a device trains.

        Args:
            schedule: The round of the chunk before it.
            rest: The chunks of this round after that.
            rates: The learning rate of each local step of this round.
        """
        upcoming, chunks = self._next_chunks(schedule, rest)
        if chunks:
            rates = rates if upcoming is schedule else self.rates(upcoming)
            plan = self._plan(upcoming, chunks[0], rates, chunks[1:])
            self._ahead = upcoming.first_step, chunks[0], plan
        self.inputs(upcoming).compute()

    def _plan(
        self, schedule: RoundSchedule, rows: ClientRows, rates: list[float], rest: Sequence[ClientRows]
    ) -> RoundPlan:
        sizes: Tensor | None = None
        if isinstance(rows, range):
            sample_ids = self.streams.sample_ids(schedule.first_step, schedule.local_steps, rows)
        else:
            assert isinstance(self.streams, UnequalStreams), "as in chunks"
            sample_ids, sizes = self.streams.batches(schedule.first_step, rows)
        host_ids = take(self.cohort(schedule).ids, rows)
        return RoundPlan(
            client_ids=to_device(host_ids, self.device),
            first_step=schedule.first_step,
            learning_rates=to_device(torch.tensor(rates[: len(sample_ids)], dtype=self.dtype), self.device)
            .unsqueeze(-1)
            .expand(-1, len(rows)),
            sample_ids=to_device(sample_ids, self.index_device),
            first_row=int(rows[0]),
            following=lambda: self._following(schedule, rest, rates),
            # steps of all rows with whole batches are those of clients that take the same steps
            sizes=None if sizes is None or bool((sizes == sample_ids.shape[-1]).all()) else sizes,
            host_ids=host_ids,
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


def _are_same(one: ClientRows, other: ClientRows) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return isinstance(one, range) and isinstance(other, range) and one == other


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
