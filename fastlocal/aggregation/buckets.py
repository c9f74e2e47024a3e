"""What goes from rank to rank: one flat buffer in buckets, several of them on the way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import profiler

from .routes import Route, Steps

Fill = Callable[[Tensor, slice], None]
ALIGNED = 64
"""Columns that buckets, and what is summed at a time, begin at multiples of. On a CPU torch sums columns in vectors,
those left over at a tensor's end in another order; so they are the same columns however the sum is split."""


@dataclass
class Bucket:
    """columns: of the parameters        wire: [rows, columns], contiguous"""

    number: int
    columns: slice
    wire: Tensor


class Buckets:
    """Sends bucket i while bucket i + 1 is filled, and empties bucket i - 1 meanwhile.

    On a CPU the backend's threads carry the buckets, and `finish` moves them on. On a GPU `start` queues all of it on a
    stream of its own, and `finish` lets the current stream wait for that one: the host never does.

    flat: [rows * n_params], where the buckets lie        bucket_bytes: on the wire
    """

    def __init__(
        self, rows: int, n_params: int, dtype: torch.dtype, device: torch.device, bucket_bytes: float, route: Route
    ) -> None:
        self.flat = torch.zeros(rows * n_params, dtype=dtype, device=device)
        self._route = route
        step = max(1, int(bucket_bytes / (rows * dtype.itemsize)))
        step -= step % ALIGNED if step > ALIGNED else 0
        self._buckets = []
        for number, start in enumerate(range(0, n_params, step)):
            stop = min(start + step, n_params)
            wire = self.flat[rows * start : rows * stop].view(rows, stop - start)
            self._buckets.append(Bucket(number, slice(start, stop), wire))
        self._on_the_way: deque[tuple[Bucket, Steps, dist.Work]] = deque()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, fill: Fill, empty: Fill) -> None:
        """Fill each bucket and send it. `empty` is called with each in its turn, the ranks' sum in it.

        Both run on the stream of the buckets.
        """
        if self._stream is None:
            self._send(fill)
            self._empty = empty
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._send(fill)
            self._empty = empty
            self._move_on()

    def wait(self) -> None:
        """Until every bucket has been emptied: on a GPU, the current stream."""
        if self._stream is None:
            self._move_on()
            return
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _send(self, fill: Fill) -> None:
        self._on_the_way.clear()
        for bucket in self._buckets:
            with _named(bucket, "filled"):
                fill(bucket.wire, bucket.columns)
            self._walk(bucket, self._route(bucket.wire, bucket.columns))

    def _move_on(self) -> None:
        while self._on_the_way:
            bucket, steps, work = self._on_the_way.popleft()
            with _named(bucket, "waited for"):
                work.wait()
            self._walk(bucket, steps)

    def _walk(self, bucket: Bucket, steps: Steps) -> None:
        """To its next collective; empty it after the last."""
        work = next(steps, None)
        if work is not None:
            self._on_the_way.append((bucket, steps, work))
        else:
            with _named(bucket, "emptied"):
                self._empty(bucket.wire, bucket.columns)


def _named(bucket: Bucket, what: str) -> AbstractContextManager[object]:
    """A stretch of torch.profiler's trace, outside the spans of telemetry, which do not nest."""
    if profiler._is_profiler_enabled:
        return profiler.record_function(f"bucket {bucket.number} {what}")
    return nullcontext()
