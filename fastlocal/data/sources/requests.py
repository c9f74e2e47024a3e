"""Batches in decoding: their rows, jobs, memory and random numbers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastlocal.kernels import philox

from ..transforms import SampleIndex
from .base import BatchRequest
from .engine import DecodeJob

NO_CLIENT = 2**32 - 1
"""Client index of samples without a client."""


@dataclass(frozen=True)
class Layout:
    """Memory layout of an engine's jobs.

    Attributes:
        samples: Number of samples.
        sample_shape: Shape of one row.
        dtype: numpy dtype of the rows.
        targets: Targets of all samples, or None if they come with the samples.
        target_shape: Shape of a target that comes with a sample.
        target_dtype: dtype of such targets.
        channels_last: Whether rows are images [height, width, channels].
    """

    samples: int
    sample_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    targets: Tensor | None
    target_shape: tuple[int, ...] = ()
    target_dtype: np.dtype[np.generic] = np.dtype(np.int64)
    channels_last: bool = True

    @functools.cached_property
    def torch_dtype(self) -> torch.dtype:
        """dtype of the rows."""
        return torch.from_numpy(np.empty(0, dtype=self.dtype)).dtype


class PendingBatch:
    """A batch and its decoding jobs.

    Args:
        request: The request.
        rows: Rows of the batch, in order.
        layout: Memory layout of the jobs.
        max_rows: Maximum rows of a job.
        pinned: Use pinned memory, for a copy to a GPU.
    """

    def __init__(self, request: BatchRequest, rows: SampleIndex, layout: Layout, max_rows: int, pinned: bool) -> None:
        self.request, self.rows = request, rows
        count, shape = len(rows), layout.sample_shape
        kind = layout.torch_dtype
        if layout.channels_last:  # channels first in memory, as models need them: engines copy once
            height, width, channels = shape
            memory = torch.empty((count, channels, height, width), dtype=kind, pin_memory=pinned)
            self.out = memory.permute(0, 2, 3, 1)
        else:
            self.out = torch.empty((count, *shape), dtype=kind, pin_memory=pinned)
        self.targets = None
        if layout.targets is None:
            self.targets = np.empty((count, *layout.target_shape), layout.target_dtype)
        array = self.out.numpy()
        self.jobs = []
        for begin in range(0, count, max_rows):
            part = slice(begin, begin + max_rows)
            targets = None if self.targets is None else self.targets[part]
            self.jobs.append(DecodeJob(rows.pick(part), array[part], targets))


class Drawer(Protocol):
    """Draws random numbers for the rows of several batches at once."""

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """Return the rows with their random words."""
        ...


class SampleKeys:
    """Keys of a Dataset's random numbers: of the place in the run for a client's sample, else of the sample."""

    def __init__(self, seed: int) -> None:
        self._key = seed & philox.MASK32, seed >> 32 & philox.MASK32

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """Return the rows with the four words of each key."""
        own = rows.clients == NO_CLIENT
        places = np.where(own, rows.ids, rows.positions), rows.clients, np.where(own, 0, rows.steps)
        first, client, step = map(torch.from_numpy, places)
        counter = first, client, step, torch.tensor(int(philox.Purpose.DATASET))
        return replace(rows, words=torch.stack(philox.philox4x32(counter, self._key), dim=-1).numpy())


def make_rows(requests: Sequence[BatchRequest], drawer: Drawer) -> list[SampleIndex]:
    """Return the rows of each batch; `drawer` draws their random numbers for all batches at once."""
    found: list[SampleIndex] = []
    for shape, same_shape in itertools.groupby(requests, lambda one: one.sample_ids.shape):
        group, size = list(same_shape), shape.numel()
        rows = drawer.draw(_rows(group, shape[:-1], shape[-1]))
        found += [rows.pick(slice(index * size, (index + 1) * size)) for index in range(len(group))]
    return found


def _rows(requests: Sequence[BatchRequest], places: torch.Size, batch: int) -> SampleIndex:
    ids = torch.stack([one.sample_ids.cpu() for one in requests])
    no_client = torch.full(places, NO_CLIENT, dtype=torch.int64)
    clients = (
        torch.stack([no_client if one.clients is None else one.clients.cpu() for one in requests]).reshape(-1).numpy()
    )
    steps = torch.stack([torch.as_tensor(one.step, dtype=torch.int64).cpu().expand(places) for one in requests])
    positions = np.tile(np.arange(batch), len(clients))
    return SampleIndex(ids.view(-1).numpy(), clients.repeat(batch), steps.reshape(-1).numpy().repeat(batch), positions)
