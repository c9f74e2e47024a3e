"""Batches in a known order, some of them decoded ahead of those that were asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..transforms import DRAWN_AT_ONCE, SampleIndex
from .base import Batch, BatchRequest
from .requests import PendingBatch, rows_of

if TYPE_CHECKING:
    from .streaming import StreamingSource


class Feed:
    """Batches of a StreamingSource in a known order."""

    def __init__(self, source: StreamingSource, wanted: Iterator[BatchRequest]) -> None:
        self._source = source
        self._wanted = wanted
        self._drawn: deque[tuple[BatchRequest, SampleIndex]] = deque()
        self.pending: deque[PendingBatch] = deque()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        source = self._source
        with source.lock:
            if self.pending:
                request = self.pending.popleft()
                source.ahead -= 1
            else:
                drawn = self.take_drawn()
                if drawn is None:
                    self.close()
                    raise StopIteration
                request = source.start(*drawn)
            source.read_ahead()
        return source.deliver(request)

    def take_drawn(self) -> tuple[BatchRequest, SampleIndex] | None:
        """The next batch that is not started, or None at the end."""
        return self._drawn.popleft() if self._draw() else None

    def _draw(self) -> bool:
        """Whether a batch is left that is not started, what it needs being drawn."""
        if not self._drawn:
            wanted: list[BatchRequest] = []
            rows = 0
            while rows < DRAWN_AT_ONCE and (one := next(self._wanted, None)) is not None:
                wanted.append(one)
                rows += one.sample_ids.numel()
            self._drawn.extend(zip(wanted, rows_of(wanted, self._source.drawer), strict=True))
        return bool(self._drawn)

    def peek(self) -> BatchRequest | None:
        """What the next batch is, or None at the end."""
        with self._source.lock:
            if self.pending:
                return self.pending[0].wanted
            return self._drawn[0][0] if self._draw() else None

    def close(self) -> None:
        """Give up what was read ahead, once it is decoded: its memory is in use until then."""
        source = self._source
        with source.lock:
            if self in source.feeds:
                source.feeds.remove(self)
            dropped, self.pending, self._wanted = self.pending, deque(), iter(())
            self._drawn.clear()
        for request in dropped:
            for piece in request.pieces:
                source.drain(piece)
            with source.lock:
                source.ahead -= 1
