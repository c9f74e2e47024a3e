"""Mean and standard deviation of each image channel: from flags, published or computed."""

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
    """Return mean and (population) standard deviation per channel of x / 255, in float64.

    Args:
        images: uint8 [n, channels, height, width], n > 0.
    """
    zero = torch.zeros((), dtype=torch.int64)
    return statistics_from_counts(sum(map(count_levels, images.split(_ROWS_AT_ONCE)), zero))


def count_levels(images: Tensor) -> Tensor:
    """Count each grey level: int64 [channels, 256] of uint8 images [n, channels, height, width]."""
    return torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])


def statistics_from_counts(counts: Tensor) -> Statistics:
    """Return `channel_statistics` from the counts [channels, 256] of all images; exact for any number of images."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _own_statistics(data: DataSet, skip_bad: bool) -> Statistics:
    """Return the statistics of the training images; stored images are read one by one."""
    if isinstance(data.train, Split):
        return channel_statistics(data.train.inputs)
    assert isinstance(data.train, StoredSplit), "a Dataset cannot be loaded by name"
    counts = torch.zeros((), dtype=torch.int64)
    for index in range(len(data.train)):
        try:
            counts = counts + count_levels(read_tensor(data.train, index).unsqueeze(0))
        except UsageError:
            if not skip_bad or (index == len(data.train) - 1 and counts.dim() == 0):
                raise
    return statistics_from_counts(counts)


def resolve(
    data: DataSet, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, *, skip_bad: bool = False
) -> Statistics | tuple[None, None]:
    """Return the mean and std for normalization: from flags, else the data set's, else of its training images.

    Inputs that are no images, of another type than uint8, have none.

    Args:
        data: The data set.
        mean: --mean, or None.
        std: --std, or None.
        skip_bad: Skip training images that cannot be decoded.

    Raises:
        UsageError: A value does not fit the channels, is not finite, or is a std of 0; or a channel never varies.
    """
    channels = data.train.sample_shape[0]
    if isinstance(data.train, Split) and (data.tokens or data.train.inputs.dtype != torch.uint8):
        if mean is not None or std is not None:
            raise UsageError(f"--mean, --std: are for images of 8 bits; the inputs of {data.name} are other numbers")
        return None, None
    for flag, values in (("--mean", mean), ("--std", std)):
        if values is None:
            continue
        text = " ".join(f"{value:g}" for value in values)
        if len(values) != channels:
            raise UsageError(
                f"{flag} takes {channels} value(s), one per channel of {data.name}; got {len(values)}: {text}"
            )
        if not all(math.isfinite(value) for value in values):
            raise UsageError(f"{flag} takes finite numbers; got {text}")
        if flag == "--std" and min(values) <= 0:
            raise UsageError(f"--std takes numbers above 0; got {text}")
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
