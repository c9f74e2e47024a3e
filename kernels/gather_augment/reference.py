"""Gather, crop, flip and normalize the batches of every client in plain torch; also the CPU implementation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import Purpose, below, draw


def crop_boxes(
    seed: Tensor | int, clients: Tensor, step: Tensor | int, batch: int, padding: int
) -> tuple[Tensor, ...]:
    """Draw the top and left of each crop in the padded image, in [0, 2 * padding], and whether it is mirrored.

    Args:
        seed: Seed of the run, a number or int64 [...].
        clients: int64 [...].
        step: Global local step, a number or int64 [...].
        batch: Samples per client.
        padding: Pixels on each side.

    Returns:
        top and left (int64) and flip (bool), each [..., batch].
    """
    words = draw(seed, Purpose.CROP, clients, step, batch)
    span = 2 * padding + 1
    return below(words[0], span), below(words[1], span), words[2] < 2**31


def gather_augment(
    images: Tensor,
    sample_ids: Tensor,
    clients: Tensor | None,
    step: Tensor | int,
    *,
    seed: Tensor | int,
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """Return the normalized batches of every client.

        out = (crop(flip?(pad(images[sample_ids], padding with 0))) / 255 - mean) / std

    Args:
        images: uint8 [n, channels, height, width].
        sample_ids: int64 [..., batch].
        clients: int64 [...], whose crops at `step` are those of crop_boxes; None: no augmentation.
        step: Global local step, a number or int64 [...].
        seed: Seed of the run, a number or int64 [...].
        padding: Pixels on each side.
        mean: Per channel, in units of 1.
        std: Per channel, in units of 1.
        dtype: dtype of the result.
        channels_last: Channels-last memory layout of the result.

    Returns:
        [..., batch, channels, height, width]; crops have the size of the images.
    """
    boxes = None
    if clients is not None:
        boxes = crop_boxes(seed, clients, step, sample_ids.shape[-1], padding)
    out = gather_boxes(images, sample_ids, boxes, padding=padding, mean=mean, std=std, dtype=dtype)
    return out.movedim(-3, -1).contiguous().movedim(-1, -3) if channels_last else out


def gather_boxes(
    images: Tensor,
    sample_ids: Tensor,
    boxes: tuple[Tensor, ...] | None,
    *,
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Compute gather_augment with the boxes of crop_boxes, each of sample_ids' shape [...], or None."""
    if boxes is None:
        batch = images[sample_ids]
    else:
        batch = _crop(images, sample_ids, boxes, padding)
    centre, scale = _by_channel(tuple(mean), tuple(std), dtype, images.device)
    return batch.to(dtype).div_(255).sub_(centre).div_(scale)


@functools.cache
def _by_channel(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean and std, each [channels, 1, 1]; cached, because a CUDA graph cannot capture a copy from the host."""
    both = torch.tensor([mean, std], dtype=dtype, device=device).unsqueeze(-1).unsqueeze(-1)
    return both[0], both[1]


def _crop(images: Tensor, sample_ids: Tensor, boxes: tuple[Tensor, ...], padding: int) -> Tensor:
    top, left, flip = (values.reshape(-1) for values in boxes)
    height, width = images.shape[-2:]
    # each crop is one of (2 * padding + 1)^2 windows: half the time of an index per pixel
    padded = F.pad(images[sample_ids.reshape(-1)], (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(len(top), device=images.device), :, top, left]
    crops = torch.where(flip[:, None, None, None], crops.flip(-1), crops)
    return crops.view(*sample_ids.shape, *images.shape[1:])
