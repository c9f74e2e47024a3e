"""Batches in a known order, read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..transforms import ROWS_PER_DRAW, SampleIndex
from .base import Batch, BatchRequest
from .requests import PendingBatch, make_rows

if TYPE_CHECKING:
    from .streaming import StreamingSource


class Feed:
    """Iterator over batches of a StreamingSource in a known order."""

    def __init__(self, source: StreamingSource, requests: Iterator[BatchRequest]) -> None:
        self._source = source
        self._requests = requests
        self._ready: deque[tuple[BatchRequest, SampleIndex]] = deque()
        self.pending: deque[PendingBatch] = deque()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        source = self._source
        with source.lock:
            if self.pending:
                batch = self.pending.popleft()
                source.ahead -= 1
            else:
                ready = self.pop_next()
                if ready is None:
                    self.close()
                    raise StopIteration
                batch = source.start(*ready)
            source.read_ahead()
        return source.deliver(batch)

    def pop_next(self) -> tuple[BatchRequest, SampleIndex] | None:
        """Return the next batch that is not started, or None at the end."""
        return self._ready.popleft() if self._draw() else None

    def _draw(self) -> bool:
        """Draw the random numbers of the next batches; return whether a batch is left that is not started."""
        if not self._ready:
            requests: list[BatchRequest] = []
            rows = 0
            while rows < ROWS_PER_DRAW and (one := next(self._requests, None)) is not None:
                requests.append(one)
                rows += one.sample_ids.numel()
            self._ready.extend(zip(requests, make_rows(requests, self._source.drawer), strict=True))
        return bool(self._ready)

    def peek(self) -> BatchRequest | None:
        """Return the request of the next batch, or None at the end."""
        with self._source.lock:
            if self.pending:
                return self.pending[0].request
            return self._ready[0][0] if self._draw() else None

    def close(self) -> None:
        """Drop the batches read ahead, after their jobs end: engines write into their memory until then."""
        source = self._source
        with source.lock:
            if self in source.feeds:
                source.feeds.remove(self)
            dropped, self.pending, self._requests = self.pending, deque(), iter(())
            self._ready.clear()
        for batch in dropped:
            for job in batch.jobs:
                source.drain(job)
            with source.lock:
                source.ahead -= 1
