"""Mean and standard deviation of each image channel: given, published or computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data.decode import read_tensor
from fastlocal.data.types import DataSet, Split, StoredSplit

_ROWS_AT_ONCE = 4096


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation (of the population) per channel of x / 255, in float64.

    images: uint8 [n, channels, height, width], n > 0
    """
    return from_counts(sum(map(grey_levels, images.split(_ROWS_AT_ONCE)), torch.zeros((), dtype=torch.int64)))


def grey_levels(images: Tensor) -> Tensor:
    """How often each grey level occurs: int64 [channels, 256] of uint8 images [n, channels, height, width]."""
    return torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])


def from_counts(counts: Tensor) -> Statistics:
    """The same as `channel_statistics` from the counts [channels, 256] of all images: exact, however many they are."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _own_statistics(data: DataSet, skip_bad: bool) -> Statistics:
    """Those of the training images, which are read one by one where they are stored."""
    if isinstance(data.train, Split):
        return channel_statistics(data.train.inputs)
    assert isinstance(data.train, StoredSplit), "a Dataset has no name to be loaded by"
    counts = torch.zeros((), dtype=torch.int64)
    for index in range(len(data.train)):
        try:
            counts = counts + grey_levels(read_tensor(data.train, index).unsqueeze(0))
        except UsageError:
            if not skip_bad or (index == len(data.train) - 1 and counts.dim() == 0):
                raise
    return from_counts(counts)


def resolve(
    data: DataSet, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, *, skip_bad: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std to normalise with: those given, else the data set's own, else those of its training images.

    skip_bad: pass over those that cannot be decoded
    Raises UsageError naming --mean or --std where a given one does not fit the channels, is not finite or (std) not
    above zero, and where a channel that never varies leaves nothing to divide by.
    """
    channels = data.train.sample_shape[0]
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is None:
            continue
        shown = " ".join(f"{value:g}" for value in values)
        if len(values) != channels:
            raise UsageError(
                f"{flag} takes {channels} value(s), one per channel of {data.name}; got {len(values)}: {shown}"
            )
        if not all(math.isfinite(value) for value in values):
            raise UsageError(f"{flag} takes finite numbers; got {shown}")
        if flag == "--std" and min(values) <= 0:
            raise UsageError(f"--std takes numbers above 0; got {shown}")
    mean = data.mean if mean is None else tuple(map(float, mean))
    std = data.std if std is None else tuple(map(float, std))
    if mean is None or std is None:
        own_mean, own_std = _own_statistics(data, skip_bad)
        if std is None and min(own_std) == 0:
            raise UsageError(
                f"--std must be given: channel {own_std.index(0)} of {data.name}'s training images never varies"
            )
        mean, std = mean or own_mean, std or own_std
    return mean, std
