"""The order in which an executor takes batches, told to a source that decodes them meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import torch

from ..data.sources.base import Batch, BatchRequest, Source
from ..data.sources.feed import Feed
from ..data.sources.streaming import StreamingSource
from .round_plan import RoundPlan


class ReadAhead:
    """Batches of plans, of all clients step by step or of one client after the other.

    What follows is guessed from what was asked for last and from `RoundPlan.following`; a wrong guess costs time alone.
    """

    def __init__(self, source: StreamingSource) -> None:
        source.close_feeds()
        self._source = source
        self._lock = threading.Lock()
        self._steps: Feed | None = None
        self._plan: tuple[int, int] | None = None
        self._opened: set[int] = set()
        self._guessed: dict[tuple[int, int, int], Feed] = {}

    def batch(self, plan: RoundPlan, step: int, clients: slice) -> Batch:
        """Local step `step` of these clients; the same clients' next steps are read meanwhile, the next plans' too."""
        with self._lock:
            feed = self._steps
            if feed is None or not _is_next(feed, plan, step, clients):
                if feed is not None:
                    feed.close()
                self._steps = feed = self._source.feed(_by_step(plan, step, clients))
        return next(feed)

    def batches_of(self, plan: RoundPlan, client: int) -> Generator[Batch, None, None]:
        """All steps of one client, without a client axis; those of the client after it are begun meanwhile."""
        with self._lock:
            self._turn_to(plan)
            feed = self._guessed.pop((plan.first_step, plan.first_client, client), None)
            if feed is not None and not _is_next(feed, plan, 0, client):
                feed.close()
                feed = None
            if feed is None:
                feed = self._source.feed(_steps(plan, 0, client))
            self._opened.add(client)
            self._guess(plan, client)
        try:
            yield from feed
        finally:
            feed.close()

    def _turn_to(self, plan: RoundPlan) -> None:
        """Forget guesses about another plan."""
        if self._plan != (plan.first_step, plan.first_client):
            self._plan = plan.first_step, plan.first_client
            self._opened.clear()
            for key in [key for key in self._guessed if key[:2] != self._plan]:
                self._guessed.pop(key).close()

    def _guess(self, plan: RoundPlan, client: int) -> None:
        """Open the feed of the client that comes next, if there is one that nobody has opened."""
        later = (other for other in range(client + 1, plan.sample_ids.shape[1]) if other not in self._opened)
        following: int | None = next(later, None)
        if following is None:
            upcoming = next(plan.following(), None)
            if upcoming is None:
                return
            plan, following = upcoming, 0
        key = plan.first_step, plan.first_client, following
        if key not in self._guessed:
            self._guessed[key] = self._source.feed(_steps(plan, 0, following))


Key = tuple[int, int, int, slice | int]


def _key(plan: RoundPlan, step: int, clients: slice | int) -> Key:
    return plan.first_step, plan.first_client, step, clients


def _is_next(feed: Feed, plan: RoundPlan, step: int, clients: slice | int) -> bool:
    wanted = feed.peek()
    if wanted is None or wanted.key != _key(plan, step, clients):
        return False
    return torch.equal(wanted.sample_ids, plan.sample_ids[step, clients])


def reading_ahead(source: Source) -> ReadAhead | None:
    """Return what reads ahead of the steps, if the source streams."""
    return ReadAhead(source) if isinstance(source, StreamingSource) else None


def _by_step(plan: RoundPlan, first: int, clients: slice) -> Iterator[BatchRequest]:
    following = plan.following()
    upcoming: RoundPlan | None = plan
    while upcoming is not None:
        yield from _steps(upcoming, first, clients)
        first, upcoming = 0, next(following, None)


def _steps(plan: RoundPlan, first: int, clients: slice | int) -> Iterator[BatchRequest]:
    numbers = plan.client_ids.cpu()[clients]
    for step in range(first, plan.local_steps):
        yield BatchRequest(plan.sample_ids[step, clients], numbers, plan.first_step + step, _key(plan, step, clients))
