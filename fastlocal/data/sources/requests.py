"""A batch that is being decoded: the rows that it has, where they go, and what is drawn for them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..transforms import Rows
from .base import Wanted
from .engine import Cutter, Piece


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


class Request:
    """A batch and the pieces that it is decoded in.

    rows: of the batch, in its order        pinned: whether a GPU is to copy them
    """

    def __init__(self, wanted: Wanted, rows: Rows, layout: Layout, most_rows: int, pinned: bool) -> None:
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
            self.pieces.append(Piece(rows.pick(part), array[part], targets))


def rows_of(wanted: Sequence[Wanted], cutter: Cutter | None) -> list[Rows]:
    """The rows of each batch. cutter: draws their crops, for all batches at once; None: there are none."""
    found: list[Rows] = []
    for shape, alike in itertools.groupby(wanted, lambda one: one.sample_ids.shape):
        group, size = list(alike), shape.numel()
        rows = _rows(group, shape[:-1], shape[-1])
        drawn = rows if cutter is None else cutter.draw(rows)
        found += [drawn.pick(slice(index * size, (index + 1) * size)) for index in range(len(group))]
    return found


def _rows(wanted: Sequence[Wanted], places: torch.Size, batch: int) -> Rows:
    ids = torch.stack([one.sample_ids.cpu() for one in wanted])
    nobody = torch.zeros(places, dtype=torch.int64)
    clients = torch.stack([nobody if one.clients is None else one.clients.cpu() for one in wanted]).reshape(-1).numpy()
    steps = torch.stack([torch.as_tensor(one.step, dtype=torch.int64).cpu().expand(places) for one in wanted])
    positions = np.tile(np.arange(batch), len(clients))
    return Rows(ids.view(-1).numpy(), clients.repeat(batch), steps.reshape(-1).numpy().repeat(batch), positions)
