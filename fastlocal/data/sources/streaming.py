"""Batches that an engine decodes while the model trains on earlier ones."""

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
from fastlocal.common.errors import UsageError
from fastlocal.common.interrupts import check_signals
from fastlocal.kernels.gather_augment.cpu import normalise

from ..transforms import PADDING, Ints, SampleIndex
from .base import Batch, BatchRequest
from .engine import DecodeJob, Engine
from .feed import Feed
from .requests import Drawer, Layout, PendingBatch, rows_of

POLL_S = 0.2
"""How long an interrupt may have to wait for the data that are waited for."""
NAMED = 10
"""Samples that cannot be decoded and are named each; the others are counted."""


class StreamingSource:
    """Samples that `engine` decodes, at most `prefetch` batches ahead of those that were asked for.

    mean, std: per channel in units of 1, for uint8 images; None where samples reach the model as they are, floating
        ones in `dtype`
    prefetch: batches that are being decoded or wait decoded, those apart that somebody waits for
    drawer: draws the boxes that the engine cuts, or keys of a Dataset's random numbers
    on_bad_sample: what a sample that cannot be decoded does: end the run, or give its place to the next one that can
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
    ) -> None:
        self.engine, self.layout = engine, layout
        self.mean, self.std = mean, std
        self.device, self.dtype = device, dtype
        self.index_device = torch.device("cpu")
        self.prefetch, self.on_bad_sample = prefetch, on_bad_sample
        self.drawer = drawer
        self.ahead = 0
        self.most_ahead = 0
        self._uses_in_place = device.type == "cpu" and mean is not None
        self._gather = kernels.get("gather_augment", device=device)
        self.lock = threading.RLock()
        self.feeds: list[Feed] = []
        self._next_rows: tuple[int, Feed] | None = None
        self._instead: Ints | None = None
        self._bad: set[int] = set()
        self._more_bad = False
        self._messages: list[str] = []
        self._waited = 0.0
        self._closed = False
        weakref.finalize(self, engine.close)  # so that no process outlives a source that nobody closed

    def __len__(self) -> int:
        return self.layout.samples

    def batch_bytes(self, batch: int) -> int:
        item = self.layout.dtype.itemsize if self.mean is None else self.dtype.itemsize
        return batch * math.prod(self.layout.sample_shape) * item

    def batch(self, sample_ids: Tensor, clients: Tensor, step: Tensor | int) -> Batch:
        wanted = BatchRequest(sample_ids, clients, step)
        (rows,) = rows_of([wanted], self.drawer)
        return self.deliver(self.start(wanted, rows))

    def feed(self, wanted: Iterable[BatchRequest]) -> Feed:
        """These batches one after the other; several feeds share what may be read ahead."""
        with self.lock:
            self.feeds.append(Feed(self, iter(wanted)))
            return self.feeds[-1]

    def close_feeds(self) -> None:
        """Give up everything that is read ahead."""
        while self.feeds:
            self.feeds[-1].close()
        self._next_rows = None

    def read_range(self, begin: int, end: int) -> Batch:
        """As a source does; the rows that would follow in steps of this size are read ahead."""
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
        with self.lock:
            messages, self._messages = self._messages, []
            if self._more_bad:
                messages.append(f"{len(self._bad)} samples cannot be decoded so far; the next ones take their places")
                self._more_bad = False
            return messages

    def close(self) -> None:
        """Ends the engine. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self.engine.close()

    def read_ahead(self) -> None:
        """Start batches of the feeds in turn, those with the fewest first, until enough are under way."""
        with self.lock:
            while self.ahead < self.prefetch:
                for feed in sorted(self.feeds, key=lambda feed: len(feed.pending)):
                    drawn = feed.take_drawn()
                    if drawn is not None:
                        feed.pending.append(self.start(*drawn))
                        self.ahead += 1
                        self.most_ahead = max(self.most_ahead, self.ahead)
                        break
                else:
                    return

    def start(self, wanted: BatchRequest, rows: SampleIndex) -> PendingBatch:
        """Have the engine begin a batch."""
        request = PendingBatch(wanted, rows, self.layout, self.engine.most_rows, self.device.type == "cuda")
        for piece in request.pieces:
            better = self._readable(piece.rows.ids)
            if (piece.rows.ids != better).any():
                piece.rows.ids[:] = better
                piece.rows = piece.rows.of(piece.rows.ids)
            self.engine.begin(piece)
        return request

    def deliver(self, request: PendingBatch) -> Batch:
        """The batch, once it is decoded, on the device."""
        began = time.perf_counter()
        used: list[tuple[float, Tensor]] = []
        if self._uses_in_place and len(request.pieces) == 1:

            def use(images: np.ndarray[Any, Any]) -> None:
                used.append((time.perf_counter(), self._normalised(torch.from_numpy(images))))

            request.pieces[0].use = use
        for piece in request.pieces:
            self.wait_for(piece)
        with self.lock:
            self._waited += (used[0][0] if used else time.perf_counter()) - began
        if used:
            inputs = used[0][1].view(*request.wanted.sample_ids.shape, *used[0][1].shape[1:])
            return Batch(inputs, self._targets(request))
        for piece in request.pieces:  # of all before any is replaced, so that none takes the place of another
            self._refuse(piece)
        for piece in request.pieces:
            if piece.bad:
                piece.to_host()
                self._replace(piece)
        return Batch(self._inputs(request), self._targets(request))

    def wait_for(self, piece: DecodeJob) -> None:
        """Until the piece is done; raises what went wrong with it."""
        while not piece.done.is_set():
            check_signals()
            self.engine.advance(piece, POLL_S)
        if piece.error is not None:
            raise piece.error

    def drain(self, piece: DecodeJob) -> None:
        """Until the piece is done, whatever came of it."""
        while not (piece.done.is_set() or self._closed):
            self.engine.advance(piece, POLL_S)

    def _replace(self, piece: DecodeJob) -> None:
        """Fill the rows of samples that cannot be decoded from the next ones that can."""
        waiting = [row for row, _ in piece.bad]
        while waiting:
            places = np.array(sorted(set(waiting)))
            rows = piece.rows.pick(places)
            rows = rows.of(self._readable(rows.ids))
            targets = None if piece.targets is None else piece.targets[places]
            other = DecodeJob(rows, np.empty_like(piece.out[places]), targets)
            self.engine.begin(other)
            self.wait_for(other)
            other.to_host()
            piece.rows.ids[places], piece.out[places] = rows.ids, other.out
            if piece.targets is not None:
                piece.targets[places] = other.targets
            self._refuse(other)
            waiting = [int(places[row]) for row, _ in other.bad]

    def _refuse(self, piece: DecodeJob) -> None:
        """Take note of the samples that cannot be decoded; raises UsageError where they end the run."""
        for row, bad in sorted(piece.bad, key=lambda refused: refused[0]):
            if self.on_bad_sample == "stop":
                raise UsageError(f"{bad}; replace or remove it, or give --on-bad-sample skip")
            index = int(piece.rows.ids[row])
            with self.lock:
                if index in self._bad:
                    continue
                self._more_bad |= len(self._bad) >= NAMED
                if len(self._bad) < NAMED:
                    self._messages.append(f"{bad}; the next sample takes its place (--on-bad-sample skip)")
                self._bad.add(index)
                if len(self._bad) == len(self):
                    raise UsageError(f"{bad}; nor can any other sample")
                if self._instead is None:
                    self._instead = np.arange(len(self))
                self._instead[index] = (index + 1) % len(self)

    def _readable(self, ids: Ints) -> Ints:
        """The same samples, in the places of those known to be bad the next ones."""
        with self.lock:
            if self._instead is None:
                return ids
            found = self._instead[ids]
            while len(self._bad) < len(self) and (self._instead[found] != found).any():
                found = self._instead[found]
            self._instead[ids] = found  # however many are bad in a row, they are passed over at once from now on
            return found

    def _inputs(self, request: PendingBatch) -> Tensor:
        if any(piece.on_device is not None for piece in request.pieces):
            inputs = torch.cat([self._on_device(piece) for piece in request.pieces])
        else:
            inputs = request.out.to(self.device, non_blocking=True)
        places = request.wanted.sample_ids.shape
        if self.mean is None or self.std is None:
            inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
            return inputs.view(*places, *inputs.shape[1:])
        images = self._normalised(inputs.permute(0, 3, 1, 2).contiguous() if self.layout.channels_last else inputs)
        return images.view(*places, *images.shape[1:])

    def _on_device(self, piece: DecodeJob) -> Tensor:
        if piece.on_device is None:
            return torch.from_numpy(piece.out).to(self.device)
        # its memory belongs to the stream of the thread that decoded it
        piece.on_device.record_stream(torch.cuda.current_stream(self.device))
        return piece.on_device

    def _normalised(self, images: Tensor) -> Tensor:
        """Of uint8 images [n, channels, height, width]."""
        assert self.mean is not None and self.std is not None
        if self.device.type == "cpu":
            return normalise(images, mean=self.mean, std=self.std, dtype=self.dtype)
        numbers = torch.arange(len(images), device=self.device)
        normalised: Tensor = self._gather(
            images, numbers, None, 0, seed=0, padding=PADDING, mean=self.mean, std=self.std, dtype=self.dtype
        )
        return normalised

    def _targets(self, request: PendingBatch) -> Tensor:
        if self.layout.targets is None:
            assert request.targets is not None
            targets = torch.from_numpy(request.targets)
        else:
            targets = self.layout.targets.index_select(0, torch.from_numpy(request.rows.ids))
        targets = targets.to(self.device, self.dtype if targets.is_floating_point() else None)
        return targets.view(*request.wanted.sample_ids.shape, *targets.shape[1:])
