"""A batch that is being decoded: the rows that it has, where they go, and what is drawn for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..transforms import Rows, crop_words
from .base import Wanted
from .engine import Piece


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


def rows_of(wanted: Sequence[Wanted], seed: int | None) -> list[Rows]:
    """The rows of each batch. seed: of their crops, drawn for all batches at once; None: nothing is drawn."""
    found = [_rows(one) for one in wanted]
    if seed is None or not found:
        return found
    columns = zip(*((rows.ids, rows.clients, rows.steps, rows.positions) for rows in found), strict=True)
    ids, clients, steps, positions = map(np.concatenate, columns)
    words = crop_words(seed, Rows(ids, clients, steps, positions))
    ends = np.cumsum([len(rows) for rows in found])[:-1]
    return [replace(rows, words=own) for rows, own in zip(found, np.split(words, ends), strict=True)]


def _rows(wanted: Wanted) -> Rows:
    ids = wanted.sample_ids.cpu().numpy()
    places, batch = ids.shape[:-1], ids.shape[-1]
    clients = 0 if wanted.clients is None else wanted.clients.cpu().numpy()
    step = wanted.step.cpu().numpy() if isinstance(wanted.step, Tensor) else wanted.step
    clients, steps = (np.broadcast_to(np.asarray(of, np.int64), places).reshape(-1) for of in (clients, step))
    return Rows(ids.flatten(), clients.repeat(batch), steps.repeat(batch), np.tile(np.arange(batch), clients.size))
