"""Batches for the first steps, with the extreme values of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.sources.base import Source
from ..data.types import AnySplit, Split
from .probe import CLIENTS, STEPS, Batches

LARGEST = 10**8
"""Numbers up to which a tensor is searched for its extremes, which takes a tenth of a second."""


def first_batches(source: Source, split: AnySplit, size: int) -> Batches:
    """Return CLIENTS x STEPS batches of `size` samples from different places of the data.

    If the data are in memory, the first batch holds the smallest and the largest number of integer inputs and targets.
    Thus a token without a row in an embedding, or a label without an output, fails before the run.
    """
    first = _extremes(split)[:size]
    batches, begin = [], 0
    for _ in range(CLIENTS):
        steps = []
        for _ in range(STEPS):
            steps.append(_rows(source, [*first, *(place % len(source) for place in range(begin, begin + size))][:size]))
            first, begin = [], begin + size
        batches.append(steps)
    return batches


def _extremes(split: AnySplit) -> list[int]:
    """Return the samples with the extremes of integer inputs, except images, and of integer targets."""
    if not isinstance(split, Split):
        return []
    places: list[int] = []
    for values in (split.inputs, split.targets):
        images = values.dtype == torch.uint8 and values.dim() == 4
        if images or values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            continue
        if 0 < values.numel() <= LARGEST:
            flat, width = values.reshape(-1), values[0].numel()
            places += [int(flat.argmin()) // width, int(flat.argmax()) // width]
    return list(dict.fromkeys(places))


def _rows(source: Source, places: list[int]) -> tuple[Tensor, Tensor]:
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    parts = [source.read_range(begin, end) for begin, end in runs]
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])
