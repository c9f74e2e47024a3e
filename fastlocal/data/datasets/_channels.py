"""Mean and standard deviation of each image channel: given, published or computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlocal.data.types import DataSet
from fastlocal.errors import UsageError

_ROWS_AT_ONCE = 4096


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of the population) per channel of x / 255, in float64.

    images: uint8 [n, channels, height, width], n > 0
    The grey levels are counted first, so that the sums are exact whatever the number of images.
    """
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for rows in images.split(_ROWS_AT_ONCE):
        for channel in range(channels):
            counts[channel] += torch.bincount(rows[:, channel].reshape(-1), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def resolve(
    data: DataSet, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std to normalise with: those given, else the data set's own, else those of its training images.

    Raises UsageError naming --mean or --std where a given one does not fit the channels, is not finite or (std) not
    above zero, and where a channel that never varies leaves nothing to divide by.
    """
    channels = data.train.inputs.shape[1]
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
        own_mean, own_std = channel_statistics(data.train.inputs)
        if std is None and min(own_std) == 0:
            raise UsageError(
                f"--std must be given: channel {own_std.index(0)} of {data.name}'s training images never varies"
            )
        mean, std = mean or own_mean, std or own_std
    return mean, std
