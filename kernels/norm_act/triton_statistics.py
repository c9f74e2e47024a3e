# mypy: allow-untyped-defs, allow-incomplete-defs
"""Mean and deviation of units that are too large for one program: of tiles first, then of the units."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tile import Plan, channels, moments, offsets, strides


@triton.jit
def _statistics_kernel(
    x_ptr,
    means_ptr,
    squares_ptr,
    samples,
    positions,
    splits,
    x_stride_client,
    x_stride_batch,
    x_stride_channel,
    x_stride_pixel,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    PIXELS: tl.constexpr,
    OVER_BATCH: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_POSITIONS: tl.constexpr,
):
    """Mean and sum of squares of every tile, as [clients, samples, splits, groups]."""
    GROUP_TILES: tl.constexpr = (GROUPS + TILE_GROUPS - 1) // TILE_GROUPS
    pid = tl.program_id(0).to(tl.int64)
    first_group = pid % GROUP_TILES * TILE_GROUPS
    split = pid // GROUP_TILES % splits
    unit = pid // GROUP_TILES // splits
    client = unit // samples
    group, channel, in_rows = channels(first_group, GROUPS, PER_GROUP, TILE_GROUPS, PADDED)
    position = split.to(tl.int32) * TILE_POSITIONS + tl.arange(0, TILE_POSITIONS)
    inside = in_rows[:, None] & (position < positions)[None, :]
    x_offset = offsets(
        client,
        unit % samples,
        channel,
        position,
        x_stride_client,
        x_stride_batch,
        x_stride_channel,
        x_stride_pixel,
        PIXELS,
        OVER_BATCH,
    )
    x = tl.load(x_ptr + x_offset, mask=inside, other=0.0).to(tl.float32)
    count = PER_GROUP * tl.minimum(positions - split * TILE_POSITIONS, TILE_POSITIONS)
    mean, squares = moments(x, inside, count.to(tl.float32), TILE_GROUPS, PADDED)
    place = (unit * splits + split) * GROUPS + group
    first_of_group = in_rows & (channel % PER_GROUP == 0)
    tl.store(means_ptr + place, mean, mask=first_of_group)
    tl.store(squares_ptr + place, squares, mask=first_of_group)


@triton.jit
def _combine_kernel(
    means_ptr,
    squares_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    positions,
    splits,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    TILE_POSITIONS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """The tiles' statistics to those of whole units (Chan, Golub & LeVeque 1979)."""
    BLOCKS: tl.constexpr = (GROUPS + BLOCK_GROUPS - 1) // BLOCK_GROUPS
    pid = tl.program_id(0).to(tl.int64)
    unit = pid // BLOCKS
    group = pid % BLOCKS * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    total = tl.zeros((BLOCK_GROUPS,), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & (group < GROUPS)[None, :]
        count = tl.minimum(positions - split * TILE_POSITIONS, TILE_POSITIONS).to(tl.float32)[:, None]
        place = (unit * splits + split)[:, None] * GROUPS + group[None, :]
        total += tl.sum(count * tl.load(means_ptr + place, mask=inside, other=0.0), axis=0)
    mean = total / positions
    apart = tl.zeros((BLOCK_GROUPS,), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & (group < GROUPS)[None, :]
        count = tl.minimum(positions - split * TILE_POSITIONS, TILE_POSITIONS).to(tl.float32)[:, None] * PER_GROUP
        place = (unit * splits + split)[:, None] * GROUPS + group[None, :]
        differs = tl.where(inside, tl.load(means_ptr + place, mask=inside, other=0.0) - mean[None, :], 0.0)
        apart += tl.sum(count * differs * differs + tl.load(squares_ptr + place, mask=inside, other=0.0), axis=0)
    tl.store(mean_ptr + unit * GROUPS + group, mean, mask=group < GROUPS)
    rstd = 1 / tl.sqrt(apart / (PER_GROUP * positions) + eps)
    tl.store(rstd_ptr + unit * GROUPS + group, rstd, mask=group < GROUPS)


def statistics(x: Tensor, mean: Tensor, rstd: Tensor, eps: float, cut: Plan) -> None:
    """Fill mean and rstd [clients, samples, groups] from x [clients, batch, channels, pixels]."""
    units = x.shape[0] * cut.samples
    means = x.new_empty((units, cut.splits, cut.groups), dtype=torch.float32)
    squares = torch.empty_like(means)
    _statistics_kernel[(units * cut.splits * cut.group_tiles,)](
        x_ptr=x,
        means_ptr=means,
        squares_ptr=squares,
        samples=cut.samples,
        positions=cut.positions,
        splits=cut.splits,
        **strides("x", x),
        **cut.constants,
    )
    block_groups = min(64, triton.next_power_of_2(cut.groups))
    _combine_kernel[(units * triton.cdiv(cut.groups, block_groups),)](
        means_ptr=means,
        squares_ptr=squares,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
        positions=cut.positions,
        splits=cut.splits,
        GROUPS=cut.groups,
        PER_GROUP=cut.per_group,
        TILE_POSITIONS=cut.tile_positions,
        BLOCK_SPLITS=min(32, triton.next_power_of_2(cut.splits)),
        BLOCK_GROUPS=block_groups,
        num_warps=2,
    )
