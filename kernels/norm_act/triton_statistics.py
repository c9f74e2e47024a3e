# mypy: allow-untyped-defs, allow-incomplete-defs
"""Mean and deviation of units too large for one program: of tiles first, then of the units."""

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
    """Compute mean and sum of squared deviations of every tile, [clients, samples, splits, groups]."""
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
    """Combine the tiles' statistics to those of whole units (Chan, Golub & LeVeque 1979)."""
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
    squares = tl.zeros((BLOCK_GROUPS,), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & (group < GROUPS)[None, :]
        count = tl.minimum(positions - split * TILE_POSITIONS, TILE_POSITIONS).to(tl.float32)[:, None] * PER_GROUP
        place = (unit * splits + split)[:, None] * GROUPS + group[None, :]
        deviation = tl.where(inside, tl.load(means_ptr + place, mask=inside, other=0.0) - mean[None, :], 0.0)
        squares += tl.sum(count * deviation * deviation + tl.load(squares_ptr + place, mask=inside, other=0.0), axis=0)
    tl.store(mean_ptr + unit * GROUPS + group, mean, mask=group < GROUPS)
    rstd = 1 / tl.sqrt(squares / (PER_GROUP * positions) + eps)
    tl.store(rstd_ptr + unit * GROUPS + group, rstd, mask=group < GROUPS)


def statistics(x: Tensor, mean: Tensor, rstd: Tensor, eps: float, tiling: Plan) -> None:
    """Compute mean and rstd [clients, samples, groups] of x [clients, batch, channels, pixels], in place."""
    units = x.shape[0] * tiling.samples
    means = x.new_empty((units, tiling.splits, tiling.groups), dtype=torch.float32)
    squares = torch.empty_like(means)
    _statistics_kernel[(units * tiling.splits * tiling.group_tiles,)](
        x_ptr=x,
        means_ptr=means,
        squares_ptr=squares,
        samples=tiling.samples,
        positions=tiling.positions,
        splits=tiling.splits,
        **strides("x", x),
        **tiling.constants,
    )
    combine(
        means,
        squares,
        mean,
        rstd,
        eps,
        positions=tiling.positions,
        tile_positions=tiling.tile_positions,
        per_group=tiling.per_group,
    )


def combine(
    means: Tensor,
    squares: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    *,
    positions: int,
    tile_positions: int,
    per_group: int,
) -> None:
    """Combine the statistics of tiles to mean and rstd [clients, samples, groups], in place.

    Args:
        means: Mean of each tile, [units, tiles, groups] in the first elements; there may be more.
        squares: Sum of squared deviations of each tile, as means.
        eps: Added to the variance.
        positions: Positions of a unit.
        tile_positions: Positions of a tile; the last tile of a unit may have fewer.
        per_group: Elements of a group at each position.
    """
    groups, splits = mean.shape[-1], triton.cdiv(positions, tile_positions)
    block_groups = min(64, triton.next_power_of_2(groups))
    _combine_kernel[(mean.numel() // groups * triton.cdiv(groups, block_groups),)](
        means_ptr=means,
        squares_ptr=squares,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
        positions=positions,
        splits=splits,
        GROUPS=groups,
        PER_GROUP=per_group,
        TILE_POSITIONS=tile_positions,
        BLOCK_SPLITS=min(32, triton.next_power_of_2(splits)),
        BLOCK_GROUPS=block_groups,
        num_warps=2,
    )
