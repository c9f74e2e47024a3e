"""Announce the batches of an executor to a streaming source, which decodes them ahead."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import torch

from ..data.sources.base import Batch, BatchRequest, Source
from ..data.sources.feed import Feed
from ..data.sources.streaming import StreamingSource
from .round_plan import RoundPlan


class ReadAhead:
    """Batches of plans, for all clients step by step or for one client after the other.

    The next requests are guessed from the last request and from `RoundPlan.following`. A wrong guess costs only time.
    """

    def __init__(self, source: StreamingSource) -> None:
        source.close_feeds()
        self._source = source
        self._lock = threading.Lock()
        self._steps: Feed | None = None
        self._plan: tuple[int, int] | None = None
        self._started_clients: set[int] = set()
        self._guesses: dict[tuple[int, int, int], Feed] = {}

    def batch(self, plan: RoundPlan, step: int, clients: slice, size: int) -> Batch:
        """Return the batch of a local step of some clients, while their next steps and plans are read.

        Args:
            plan: The round.
            step: The step, counted from the round's first.
            clients: Rows whose batches have one size.
            size: Its size.
        """
        with self._lock:
            feed = self._steps
            if feed is None or not _is_next(feed, plan, step, clients, size):
                if feed is not None:
                    feed.close()
                self._steps = feed = self._source.feed(_by_step(plan, step, clients))
        return next(feed)

    def batches_of(self, plan: RoundPlan, client: int) -> Generator[Batch, None, None]:
        """Yield the batches of one client, without a client axis, while those of the next client are read."""
        with self._lock:
            self._drop_other_plans(plan)
            feed = self._guesses.pop((plan.start, plan.first_row, client), None)
            if feed is not None and not _is_next(feed, plan, 0, client, plan.size_of(client, 0)):
                feed.close()
                feed = None
            if feed is None:
                feed = self._source.feed(_steps(plan, 0, client))
            self._started_clients.add(client)
            self._guess(plan, client)
        try:
            yield from feed
        finally:
            feed.close()

    def _drop_other_plans(self, plan: RoundPlan) -> None:
        """Close the guessed feeds of other plans."""
        if self._plan != (plan.start, plan.first_row):
            self._plan = plan.start, plan.first_row
            self._started_clients.clear()
            for key in [key for key in self._guesses if key[:2] != self._plan]:
                self._guesses.pop(key).close()

    def _guess(self, plan: RoundPlan, client: int) -> None:
        """Open the feed of the next client without a feed, if there is one."""
        later = (other for other in range(client + 1, plan.sample_ids.shape[1]) if other not in self._started_clients)
        following: int | None = next(later, None)
        if following is None:
            upcoming = next(plan.following(), None)
            if upcoming is None:
                return
            plan, following = upcoming, 0
        key = plan.start, plan.first_row, following
        if key not in self._guesses:
            self._guesses[key] = self._source.feed(_steps(plan, 0, following))


Key = tuple[int, int, int, slice | int]


def _key(plan: RoundPlan, step: int, clients: slice | int) -> Key:
    return plan.start, plan.first_row, step, clients


def _is_next(feed: Feed, plan: RoundPlan, step: int, clients: slice | int, size: int) -> bool:
    request = feed.peek()
    if request is None or request.key != _key(plan, step, clients):
        return False
    return torch.equal(request.sample_ids, plan.sample_ids[step, clients, :size])


def make_read_ahead(source: Source) -> ReadAhead | None:
    """Return a ReadAhead of a streaming source, or None."""
    return ReadAhead(source) if isinstance(source, StreamingSource) else None


def _by_step(plan: RoundPlan, first: int, clients: slice) -> Iterator[BatchRequest]:
    following = plan.following()
    upcoming: RoundPlan | None = plan
    while upcoming is not None:
        yield from _steps(upcoming, first, clients)
        clients = clients if upcoming.sizes is None else slice(None)
        first, upcoming = 0, next(following, None)


def _steps(plan: RoundPlan, first: int, clients: slice | int) -> Iterator[BatchRequest]:
    """Yield the requests of a plan from those of some clients at step `first` on."""
    client_ids = plan.client_ids.cpu() if plan.host_ids is None else plan.host_ids
    last = plan.local_steps if isinstance(clients, slice) else plan.steps_of(clients)
    for step in range(first, last):
        for rows, size in _parts(plan, step, clients, step == first):
            samples = plan.sample_ids[step, rows, :size]
            yield BatchRequest(samples, client_ids[rows], plan.start + step, _key(plan, step, rows))


def _parts(plan: RoundPlan, step: int, clients: slice | int, is_first: bool) -> list[tuple[slice | int, int]]:
    """Return the rows of each request of a step and the sizes of their batches."""
    if isinstance(clients, int):
        return [(clients, plan.size_of(clients, step))]
    if plan.sizes is None:
        return [(clients, plan.batch)]
    begin = (clients.start or 0) if is_first else 0
    return [(rows, size) for rows, size in plan.parts(step) if rows.start >= begin]
