"""Gather, crop, flip and normalize the batches of every client on a CPU, row by row of the images."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import native
from .reference import crop_boxes

BLOCK_BYTES = 2**19
"""Bytes of images per crop and normalization, to stay in a core's cache."""


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
    """Return the normalized batches of every client; as the reference, up to the rounding of x * scale + offset.

    128 crops of 3x32x32 take 0.4 ms on one core, 0.6 ms without `native` (same bits), and 1.9 ms by the reference.
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
    shape = images.shape[1:]
    out = torch.empty(*sample_ids.shape, *shape, dtype=dtype)
    if not out.numel():
        return out
    ids, flat = sample_ids.reshape(-1), out.view(-1, *shape)
    columns = None if boxes is None else [values.expand(sample_ids.shape).reshape(-1) for values in boxes]
    if native.has("gather_images") and images.is_contiguous() and dtype == torch.float32:
        crops = None if columns is None else torch.stack(columns)
        scale, offset = _normalisation(tuple(mean), tuple(std), dtype)
        arguments = images, ids.contiguous(), crops, scale.flatten(), offset.flatten()
        torch.ops.fastlocal_native.gather_images(*arguments, flat, padding)
        return out
    block = max(1, BLOCK_BYTES // math.prod(shape))
    for begin in range(0, len(ids), block):
        part = slice(begin, begin + block)
        if columns is None:
            batch = images.index_select(0, ids[part])
        else:
            top, left, flip = (values[part] for values in columns)
            batch = _crops(images, ids[part], top, left, flip, padding)
        _normalise(batch, flat[part], mean, std)
    return out


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalize images [n, channels, height, width] in their order, as gather_augment, without a copy of the bytes."""
    out = torch.empty(images.shape, dtype=dtype)
    block = max(1, BLOCK_BYTES // max(1, math.prod(images.shape[1:])))
    for begin in range(0, len(images), block):
        _normalise(images[begin : begin + block], out[begin : begin + block], mean, std)
    return out


def _normalise(images: Tensor, out: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    scale, offset = _normalisation(tuple(mean), tuple(std), out.dtype)
    out.copy_(images).mul_(scale).add_(offset)


def _crops(images: Tensor, ids: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Return the crops of the padded images `ids`, uint8 [n, channels, height, width].

    Every row of a crop is a run of bytes in memory. Images to mirror are placed behind the others with all their bytes
    reversed, which is faster than row by row, and their runs are found from the end. Bytes of a run from beyond the row
    belong to other rows, and are set to black afterwards.
    """
    shape = images.shape[1:]
    size, width = math.prod(shape), shape[2]
    order = flip.argsort(stable=True)
    upright = len(ids) - int(flip.sum())
    margin = padding * (width + 1)
    buffer = torch.empty(len(ids) * size + 2 * margin, dtype=torch.uint8)
    pixels = buffer[margin : len(buffer) - margin]
    torch.index_select(images, 0, ids[order], out=pixels.view(len(ids), *shape))
    mirrored = pixels[upright * size :]
    mirrored.copy_(mirrored.flip(0))
    first = order.argsort() * size + top * width + left
    first = torch.where(flip, (upright + len(ids)) * size - width + 2 * margin - first, first)
    starts = _starts(size, width).index_select(0, flip.int()).add_(first.int()[:, None])
    runs = buffer.as_strided((len(buffer) - width + 1, width), (1, 1))
    crops = runs.index_select(0, starts.view(-1)).view(len(ids), shape[0], -1)
    left = torch.where(flip, 2 * padding - left, left)
    crops &= _inside(shape[1], width, padding).index_select(0, top * (2 * padding + 1) + left).unsqueeze(1)
    return crops.view(len(ids), *shape)


@functools.lru_cache(maxsize=8)
def _starts(size: int, width: int) -> Tensor:
    """Return int32 [2, rows]: begins of the rows of an image of `size` bytes, forwards and backwards."""
    rows = torch.arange(0, size, width, dtype=torch.int32)
    return torch.stack([rows, -rows])


@functools.lru_cache(maxsize=8)
def _inside(height: int, width: int, padding: int) -> Tensor:
    """Return uint8 [top * left, height * width]: 255 where a crop's pixel lies in the image, 0 in the padding."""
    shifts = torch.arange(-padding, padding + 1)
    rows, columns = (shifts[:, None] + torch.arange(length) for length in (height, width))
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[None, :, None, :]
    return inside.to(torch.uint8).mul_(255).view(-1, height * width)


@functools.lru_cache(maxsize=8)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return factor and offset of the bytes, each [channels, 1, 1]."""
    scale = [1 / (255 * value) for value in std]
    offset = [-centre / value for centre, value in zip(mean, std, strict=True)]
    both = torch.tensor([scale, offset], dtype=torch.float64).to(dtype).unsqueeze(-1).unsqueeze(-1)
    return both[0], both[1]
