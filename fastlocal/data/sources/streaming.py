"""Batches that an engine decodes during the training on earlier ones."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.common.interrupts import check_signals
from fastlocal.kernels.gather_augment.cpu import normalise
from fastlocal.kernels.transfers import to_device

from ..transforms import PADDING, Ints, SampleIndex
from .bad_samples import BadSamples
from .base import Batch, BatchRequest
from .engine import DecodeJob, Engine
from .feed import Feed
from .requests import Drawer, Layout, PendingBatch, make_rows
from .uploads import Uploads

POLL_S = 0.2
"""Maximum delay of an interrupt in a wait for data."""


class StreamingSource:
    """Samples decoded by an engine, at most `prefetch` batches ahead.

    Args:
        engine: Decodes the samples.
        layout: Memory layout of the engine's jobs.
        mean: Per channel in units of 1, for uint8 images; None: no normalization, floating inputs are cast to `dtype`.
        std: As `mean`.
        device: Device of the batches.
        dtype: dtype of the inputs.
        prefetch: Batches in decoding or decoded, beside those that callers wait for.
        drawer: Draws the boxes that the engine cuts, or keys of a Dataset's random numbers.
        on_bad_sample: End the run at a sample that cannot be decoded, or replace it by the next good one.
        substitutes: The next sample of each, or None for the next in order.
    """

    resident = False

    def __init__(
        self,
        engine: Engine,
        layout: Layout,
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        device: torch.device,
        dtype: torch.dtype,
        prefetch: int,
        drawer: Drawer,
        on_bad_sample: Literal["stop", "skip"],
        substitutes: Ints | None = None,
    ) -> None:
        self.engine, self.layout = engine, layout
        self.mean, self.std = mean, std
        self.device, self.dtype = device, dtype
        self.index_device = torch.device("cpu")
        self.prefetch = prefetch
        self.drawer = drawer
        self.ahead = 0
        self.max_ahead = 0
        self._uses_in_place = device.type == "cpu" and mean is not None
        self._gather = kernels.get("gather_augment", device=device)
        self.uploads = Uploads(device)
        self.lock = threading.RLock()
        self.bad_samples = BadSamples(layout.samples, on_bad_sample, self.lock, substitutes)
        self.feeds: list[Feed] = []
        self._next_rows: tuple[int, Feed] | None = None
        self._waited = 0.0
        self._closed = False
        weakref.finalize(self, engine.close)  # ends the processes of a source that is never closed

    def __len__(self) -> int:
        return self.layout.samples

    def batch_bytes(self, batch: int) -> int:
        item = self.layout.dtype.itemsize if self.mean is None else self.dtype.itemsize
        return batch * math.prod(self.layout.sample_shape) * item

    def batch(self, sample_ids: Tensor, clients: Tensor, step: Tensor | int) -> Batch:
        request = BatchRequest(sample_ids, clients, step)
        (rows,) = make_rows([request], self.drawer)
        return self.deliver(self.start(request, rows))

    def feed(self, requests: Iterable[BatchRequest]) -> Feed:
        """Return an iterator over the batches in order; several feeds share `prefetch`."""
        with self.lock:
            self.feeds.append(Feed(self, iter(requests)))
            return self.feeds[-1]

    def close_feeds(self) -> None:
        """Drop everything that is read ahead."""
        while self.feeds:
            self.feeds[-1].close()
        self._next_rows = None

    def read_range(self, begin: int, end: int) -> Batch:
        """See Source.read_range; reads the following ranges of the same size ahead."""
        size = end - begin
        with self.lock:
            expected, feed = self._next_rows or (-1, None)
            if feed is None or expected != begin:
                if feed is not None:
                    feed.close()
                feed = self.feed(
                    BatchRequest(torch.arange(start, min(start + size, len(self))), None, 0)
                    for start in range(begin, len(self), size)
                )
            self._next_rows = (end, feed) if end < len(self) else None
        return next(feed)

    def pop_wait_seconds(self) -> float:
        with self.lock:
            waited, self._waited = self._waited, 0.0
            return waited

    def pop_messages(self) -> list[str]:
        return self.bad_samples.pop_messages()

    def close(self) -> None:
        """End the engine; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self.engine.close()

    def read_ahead(self) -> None:
        """Start batches of the feeds, those with the fewest first, up to `prefetch`."""
        with self.lock:
            while self.ahead < self.prefetch:
                for feed in sorted(self.feeds, key=lambda feed: len(feed.pending)):
                    ready = feed.pop_next()
                    if ready is not None:
                        feed.pending.append(self.start(*ready))
                        self.ahead += 1
                        self.max_ahead = max(self.max_ahead, self.ahead)
                        break
                else:
                    return

    def start(self, request: BatchRequest, rows: SampleIndex) -> PendingBatch:
        """Let the engine begin a batch."""
        pending = PendingBatch(request, rows, self.layout, self.engine.max_rows, self.device.type == "cuda")
        for job in pending.jobs:
            ids = self.bad_samples.replace(job.rows.ids)
            if (job.rows.ids != ids).any():
                job.rows.ids[:] = ids
                job.rows = job.rows.with_ids(job.rows.ids)
            self.engine.begin(job)
        return pending

    def deliver(self, pending: PendingBatch) -> Batch:
        """Wait for a batch, and return it on the device."""
        began = time.perf_counter()
        used: list[tuple[float, Tensor]] = []
        if self._uses_in_place and len(pending.jobs) == 1:

            def use(images: np.ndarray[Any, Any]) -> None:
                used.append((time.perf_counter(), self._normalise(torch.from_numpy(images))))

            pending.jobs[0].use = use
        for job in pending.jobs:
            self.wait_for(job)
        with self.lock:
            self._waited += (used[0][0] if used else time.perf_counter()) - began
        if used:
            inputs = used[0][1].view(*pending.request.sample_ids.shape, *used[0][1].shape[1:])
            return Batch(inputs, self._targets(pending))
        for job in pending.jobs:  # record all bad samples first, so that none replaces another
            self.bad_samples.record(job)
        for job in pending.jobs:
            if job.bad:
                job.to_host()
                self._replace(job)
        return Batch(self._inputs(pending), self._targets(pending))

    def wait_for(self, job: DecodeJob) -> None:
        """Wait until the job is done, and raise its error."""
        while not job.done.is_set():
            check_signals()
            self.engine.advance(job, POLL_S)
        if job.error is not None:
            raise job.error

    def drain(self, job: DecodeJob) -> None:
        """Wait until the job is done, and ignore its error."""
        while not (job.done.is_set() or self._closed):
            self.engine.advance(job, POLL_S)

    def _replace(self, job: DecodeJob) -> None:
        """Fill the rows of bad samples from the next good ones."""
        bad_rows = [row for row, _ in job.bad]
        while bad_rows:
            places = np.array(sorted(set(bad_rows)))
            rows = job.rows.pick(places)
            rows = rows.with_ids(self.bad_samples.replace(rows.ids))
            targets = None if job.targets is None else job.targets[places]
            other = DecodeJob(rows, np.empty_like(job.out[places]), targets)
            self.engine.begin(other)
            self.wait_for(other)
            other.to_host()
            job.rows.ids[places], job.out[places] = rows.ids, other.out
            if job.targets is not None:
                job.targets[places] = other.targets
            self.bad_samples.record(other)
            bad_rows = [int(places[row]) for row, _ in other.bad]

    def _inputs(self, pending: PendingBatch) -> Tensor:
        if any(job.on_device is not None for job in pending.jobs):
            inputs = torch.cat([self._on_device(job) for job in pending.jobs])
        else:
            inputs = self.uploads(pending.out)
        places = pending.request.sample_ids.shape
        if self.mean is None or self.std is None:
            inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
            return inputs.view(*places, *inputs.shape[1:])
        images = self._normalise(inputs.permute(0, 3, 1, 2).contiguous() if self.layout.channels_last else inputs)
        return images.view(*places, *images.shape[1:])

    def _on_device(self, job: DecodeJob) -> Tensor:
        if job.on_device is None:
            return torch.from_numpy(job.out).to(self.device)
        # its memory belongs to the stream of the decoding thread
        job.on_device.record_stream(torch.cuda.current_stream(self.device))
        return job.on_device

    def _normalise(self, images: Tensor) -> Tensor:
        """Normalize uint8 images [n, channels, height, width]."""
        assert self.mean is not None and self.std is not None
        if self.device.type == "cpu":
            return normalise(images, mean=self.mean, std=self.std, dtype=self.dtype)
        numbers = torch.arange(len(images), device=self.device)
        result: Tensor = self._gather(
            images, numbers, None, 0, seed=0, padding=PADDING, mean=self.mean, std=self.std, dtype=self.dtype
        )
        return result

    def _targets(self, pending: PendingBatch) -> Tensor:
        if self.layout.targets is None:
            assert pending.targets is not None
            targets = torch.from_numpy(pending.targets)
        else:
            targets = self.layout.targets.index_select(0, torch.from_numpy(pending.rows.ids))
        targets = to_device(targets.to(self.dtype) if targets.is_floating_point() else targets, self.device)
        return targets.view(*pending.request.sample_ids.shape, *targets.shape[1:])
