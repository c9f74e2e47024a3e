"""A batch that is being decoded: the rows that it has, where they go, and what is drawn for them."""

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

NOBODY = 2**32 - 1
"""The client of samples that no client is given."""


@dataclass(frozen=True)
class Layout:
    """What an engine's pieces hold.

    sample_shape: of one row        dtype: its numpy dtype
    channels_last: whether rows are images [height, width, channels]
    targets: int64 [n] or the like, known beforehand; None: they come with the samples
    target_shape, target_dtype: of one that comes with a sample
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
        """Of the rows."""
        return torch.from_numpy(np.empty(0, dtype=self.dtype)).dtype


class PendingBatch:
    """A batch and the pieces that it is decoded in.

    rows: of the batch, in its order        pinned: whether a GPU is to copy them
    """

    def __init__(self, wanted: BatchRequest, rows: SampleIndex, layout: Layout, most_rows: int, pinned: bool) -> None:
        self.wanted, self.rows = wanted, rows
        count, shape = len(rows), layout.sample_shape
        kind = layout.torch_dtype
        if layout.channels_last:  # in memory channels come first, as models want them: engines copy into it once
            height, width, channels = shape
            memory = torch.empty((count, channels, height, width), dtype=kind, pin_memory=pinned)
            self.out = memory.permute(0, 2, 3, 1)
        else:
            self.out = torch.empty((count, *shape), dtype=kind, pin_memory=pinned)
        self.targets = None
        if layout.targets is None:
            self.targets = np.empty((count, *layout.target_shape), layout.target_dtype)
        array = self.out.numpy()
        self.pieces = []
        for begin in range(0, count, most_rows):
            part = slice(begin, begin + most_rows)
            targets = None if self.targets is None else self.targets[part]
            self.pieces.append(DecodeJob(rows.pick(part), array[part], targets))


class Drawer(Protocol):
    """Draws what belongs to the rows of several batches at once."""

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """The rows with what was drawn."""
        ...


class SampleKeys:
    """Keys of a Dataset's random numbers: a client's sample has that of its place in the run, any other its own."""

    def __init__(self, seed: int) -> None:
        self._key = seed & philox.MASK32, seed >> 32 & philox.MASK32

    def draw(self, rows: SampleIndex) -> SampleIndex:
        """The rows with the four words of each one's key."""
        own = rows.clients == NOBODY
        places = np.where(own, rows.ids, rows.positions), rows.clients, np.where(own, 0, rows.steps)
        first, client, step = map(torch.from_numpy, places)
        counter = first, client, step, torch.tensor(int(philox.Purpose.DATASET))
        return replace(rows, words=torch.stack(philox.philox4x32(counter, self._key), dim=-1).numpy())


def rows_of(wanted: Sequence[BatchRequest], drawer: Drawer) -> list[SampleIndex]:
    """The rows of each batch. drawer: draws what belongs to them, for all batches at once."""
    found: list[SampleIndex] = []
    for shape, alike in itertools.groupby(wanted, lambda one: one.sample_ids.shape):
        group, size = list(alike), shape.numel()
        drawn = drawer.draw(_rows(group, shape[:-1], shape[-1]))
        found += [drawn.pick(slice(index * size, (index + 1) * size)) for index in range(len(group))]
    return found


def _rows(wanted: Sequence[BatchRequest], places: torch.Size, batch: int) -> SampleIndex:
    ids = torch.stack([one.sample_ids.cpu() for one in wanted])
    nobody = torch.full(places, NOBODY, dtype=torch.int64)
    clients = torch.stack([nobody if one.clients is None else one.clients.cpu() for one in wanted]).reshape(-1).numpy()
    steps = torch.stack([torch.as_tensor(one.step, dtype=torch.int64).cpu().expand(places) for one in wanted])
    positions = np.tile(np.arange(batch), len(clients))
    return SampleIndex(ids.view(-1).numpy(), clients.repeat(batch), steps.reshape(-1).numpy().repeat(batch), positions)
