"""Batches for the first steps of a trial, which hold what the data hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.sources.base import Source
from ..data.types import AnySplit, Split
from .probe import CLIENTS, STEPS, Batches

LARGEST = 10**8
"""Numbers in which the smallest and the largest are looked for: a tenth of a second."""


def first_batches(source: Source, split: AnySplit, size: int) -> Batches:
    """Inputs and targets of CLIENTS x STEPS batches of `size` samples, from different places of the data.

    The first holds the samples with the smallest and the largest number among integer inputs and among targets, where
    they are in memory: a token without a row in a table, or a label without an output, is found before the run.
    """
    first = _extremes(split)[:size]
    batches, begin = [], 0
    for _ in range(CLIENTS):
        own = []
        for _ in range(STEPS):
            own.append(_rows(source, [*first, *(place % len(source) for place in range(begin, begin + size))][:size]))
            first, begin = [], begin + size
        batches.append(own)
    return batches


def _extremes(split: AnySplit) -> list[int]:
    """Places of the samples that hold the extremes of integer inputs, images excepted, and of integer targets."""
    if not isinstance(split, Split):
        return []
    places: list[int] = []
    for values in (split.inputs, split.targets):
        images = values.dtype == torch.uint8 and values.dim() == 4
        if images or values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            continue
        if 0 < values.numel() <= LARGEST:
            by_sample = values.reshape(len(values), -1)
            places += [int(by_sample.amin(1).argmin()), int(by_sample.amax(1).argmax())]
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
