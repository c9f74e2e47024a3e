"""Gather, crop, flip and normalise the batches of every client, in plain torch; also the CPU path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..philox import Purpose, below, draw


def crop_boxes(seed: int, clients: Tensor, step: Tensor | int, batch: int, padding: int) -> tuple[Tensor, ...]:
    """Top and left of each crop in the padded image, in [0, 2 * padding], and whether it is mirrored.

    clients: [...] int64        step: a number or int64 [...]
    Returns top, left (int64) and flip (bool), each [..., batch].
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
    seed: int,
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """The normalised batches of every client.

        out = (crop(flip?(pad(images[sample_ids], padding with 0))) / 255 - mean) / std

    images: uint8 [n, channels, height, width]        sample_ids: int64 [..., batch]
    clients: int64 [...], whose crops at `step`, a number or int64 [...], are those of crop_boxes; None for the images
        as they are
    mean, std: one value per channel, in units of 1
    channels_last: the values of a pixel lie side by side
    Returns dtype [..., batch, channels, height, width]; the crop has the image's own size.
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
    """As gather_augment, with the boxes that crop_boxes returns, each of sample_ids' shape [...], or None."""
    if boxes is None:
        batch = images[sample_ids]
    else:
        batch = _crop(images, sample_ids, boxes, padding)
    shape = (-1, 1, 1)
    out = batch.to(dtype).div_(255)
    out.sub_(torch.tensor(mean, dtype=dtype, device=images.device).view(shape))
    return out.div_(torch.tensor(std, dtype=dtype, device=images.device).view(shape))


def _crop(images: Tensor, sample_ids: Tensor, boxes: tuple[Tensor, ...], padding: int) -> Tensor:
    top, left, flip = boxes
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + (top - padding).unsqueeze(-1)
    across = torch.arange(width, device=images.device)
    columns = torch.where(flip.unsqueeze(-1), width - 1 - across, across) + (left - padding).unsqueeze(-1)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(-1) & ((columns >= 0) & (columns < width)).unsqueeze(-2)
    rows, columns = rows.clamp(0, height - 1).unsqueeze(-1), columns.clamp(0, width - 1).unsqueeze(-2)
    picked = images[sample_ids[..., None, None], :, rows, columns]
    return (picked * inside.unsqueeze(-1)).movedim(-1, -3).contiguous()
