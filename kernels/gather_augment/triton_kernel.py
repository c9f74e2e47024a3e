"""Gather, crop, flip and normalize the batches of every client: reads each byte once, and draws the crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect, per_client
from ..philox import Purpose
from ..triton_philox import below, draw, key_words, seed_words


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def _gather_augment(
    images_ptr,
    sample_ids_ptr,
    clients_ptr,
    step_ptr,
    seed_ptr,
    out_ptr,
    batch,
    blocks_per_image,
    clients_stride,
    step_stride,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    PURPOSE: tl.constexpr,
    PADDING: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    OFFSET: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    image = program // blocks_per_image
    place = (program % blocks_per_image * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        channel, pixel = place % CHANNELS, place // CHANNELS
    else:
        channel, pixel = place // (HEIGHT * WIDTH), place % (HEIGHT * WIDTH)
    row, column = pixel // WIDTH, pixel % WIDTH
    written = place < CHANNELS * HEIGHT * WIDTH
    inside = written
    if clients_ptr is not None:
        slot = image // batch
        client = tl.load(clients_ptr + slot * clients_stride)
        step = tl.load(step_ptr + slot * step_stride)
        low, high = key_words(seed_ptr, slot, seed_low, seed_high)
        top, left, mirror, _ = draw(low, high, PURPOSE, client, step, image % batch)
        column = tl.where(mirror < 0x80000000, WIDTH - 1 - column, column)
        row += below(top, 2 * PADDING + 1) - PADDING
        column += below(left, 2 * PADDING + 1) - PADDING
        inside = inside & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)

    compute: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    source = tl.load(sample_ids_ptr + image) * (CHANNELS * HEIGHT * WIDTH)
    byte = tl.load(images_ptr + source + (channel * HEIGHT + row) * WIDTH + column, mask=inside, other=0)
    # constants: loads of two values per byte would cost more than the byte
    scale = tl.full((BLOCK,), SCALE[0], compute)
    offset = tl.full((BLOCK,), OFFSET[0], compute)
    for other in tl.static_range(1, CHANNELS):
        scale = tl.where(channel == other, tl.full((BLOCK,), SCALE[other], compute), scale)
        offset = tl.where(channel == other, tl.full((BLOCK,), OFFSET[other], compute), offset)
    value = byte.to(compute) * scale + offset
    tl.store(out_ptr + image * (CHANNELS * HEIGHT * WIDTH) + place, value, mask=written)


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
    """Return the normalized batches of every client; as the reference, in float32 (float64 for a float64 result).

    Images must be contiguous. Shape, mean, std and padding are constants of the compiled kernel, one set per data set.
    Raises ValueError for a tensor of another shape, dtype or memory layout, and for mean and std of other lengths.
    """
    device = images.device
    if images.dim() != 4 or not images.is_contiguous():
        raise ValueError(
            f"images of shape {list(images.shape)} and strides {images.stride()}, "
            "expected contiguous [n, channels, height, width]"
        )
    expect("images", images, images.shape, device, torch.uint8)
    lead, (channels, height, width) = sample_ids.shape, images.shape[1:]
    expect("sample_ids", sample_ids, lead, device, torch.int64, dense=False)
    expect("clients", clients, lead[:-1], device, torch.int64, dense=False)
    if isinstance(step, Tensor):
        expect("step", step, lead[:-1] if step.dim() else (), device, torch.int64, dense=False)
    seeds = per_client("seed", 0 if clients is None else seed, lead[:-1], device, torch.int64)
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{len(mean)} means and {len(std)} standard deviations for {channels} channels")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype {dtype}, expected a floating-point type")
    shape = (height, width, channels) if channels_last else (channels, height, width)
    out = torch.empty(*lead, *shape, dtype=dtype, device=device)
    size = math.prod(shape)
    if out.numel():
        if clients is not None:
            clients = clients.reshape(-1)
            if isinstance(step, int):
                step = torch.full((), step, dtype=torch.int64, device=device)
            step = step.expand(lead[:-1]).reshape(-1)
        block = 1024 if size > 256 else 256
        blocks = triton.cdiv(size, block)
        seed_low, seed_high = seed_words(seed)
        _gather_augment[(sample_ids.numel() * blocks,)](
            images_ptr=images,
            sample_ids_ptr=sample_ids.contiguous(),
            clients_ptr=clients,
            step_ptr=None if clients is None else step,
            seed_ptr=seeds,
            out_ptr=out,
            batch=lead[-1],
            blocks_per_image=blocks,
            clients_stride=0 if clients is None else clients.stride(0),
            step_stride=step.stride(0) if clients is not None and isinstance(step, Tensor) else 0,
            seed_low=seed_low,
            seed_high=seed_high,
            PURPOSE=int(Purpose.CROP),
            PADDING=padding,
            CHANNELS=channels,
            HEIGHT=height,
            WIDTH=width,
            SCALE=tuple(1 / (255 * value) for value in std),
            OFFSET=tuple(-centre / value for centre, value in zip(mean, std, strict=True)),
            CHANNELS_LAST=channels_last,
            BLOCK=block,
            num_warps=4 if block == 1024 else 1,
        )
    return out.movedim(-1, -3) if channels_last else out
