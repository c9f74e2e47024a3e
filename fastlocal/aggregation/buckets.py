"""Buckets of a flat buffer, several of them in communication at once."""

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
"""Buckets and blocks of a sum begin at multiples of this column count. On a CPU torch sums columns in vectors, and a
tensor's last columns in another order; with this alignment every split sums the same columns in that order.
"""


@dataclass
class Bucket:
    """One bucket.

    Attributes:
        number: Index, for traces.
        columns: Columns of the parameters.
        wire: [rows, columns], contiguous.
    """

    number: int
    columns: slice
    wire: Tensor


class Buckets:
    """Communicate bucket i while bucket i + 1 is filled and bucket i - 1 is emptied.

    On a CPU the backend's threads communicate, and `wait` advances the buckets. On a GPU `start` queues all work on a
    stream of its own, and in `wait` the current stream waits for that stream; the host never waits.

    Args:
        rows: Numbers per column.
        n_params: Number of columns.
        dtype: On the wire.
        device: Of the buffer.
        bucket_bytes: Size of a bucket on the wire.
        route: Sums a bucket over the ranks.
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
        self._in_flight: deque[tuple[Bucket, Steps, dist.Work]] = deque()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, fill: Fill, empty: Fill) -> None:
        """Fill each bucket and send it, on the buckets' stream.

        Args:
            fill: Writes this rank's part into a bucket.
            empty: Reads the ranks' sum from a bucket.
        """
        if self._stream is None:
            self._send(fill)
            self._empty = empty
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._send(fill)
            self._empty = empty
            self._advance()

    def wait(self) -> None:
        """Wait until every bucket has been emptied; on a GPU the current stream waits."""
        if self._stream is None:
            self._advance()
            return
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _send(self, fill: Fill) -> None:
        self._in_flight.clear()
        for bucket in self._buckets:
            with _span(bucket, "filled"):
                fill(bucket.wire, bucket.columns)
            self._walk(bucket, self._route(bucket.wire, bucket.columns))

    def _advance(self) -> None:
        while self._in_flight:
            bucket, steps, work = self._in_flight.popleft()
            with _span(bucket, "waited for"):
                work.wait()
            self._walk(bucket, steps)

    def _walk(self, bucket: Bucket, steps: Steps) -> None:
        """Run a bucket's route up to its next collective, and empty the bucket after the last one."""
        work = next(steps, None)
        if work is not None:
            self._in_flight.append((bucket, steps, work))
        else:
            with _span(bucket, "emptied"):
                self._empty(bucket.wire, bucket.columns)


def _span(bucket: Bucket, what: str) -> AbstractContextManager[object]:
    """Open a span in torch.profiler's trace; telemetry's spans do not nest."""
    if profiler._is_profiler_enabled:
        return profiler.record_function(f"bucket {bucket.number} {what}")
    return nullcontext()
