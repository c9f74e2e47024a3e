"""norm_act in Triton: one pass if a unit fits into a program, else one for its statistics and one to apply them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Activation, check, statistics_shape
from .triton_statistics import statistics
from .triton_tile import channels, check_tensors, collapses, flat, moments, offsets, per_channel, plan, strides

ELEMENTS = 16384
"""Maximum elements per program."""


@triton.jit
def _apply_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    eps,
    samples,
    positions,
    splits,
    x_stride_client,
    x_stride_batch,
    x_stride_channel,
    x_stride_pixel,
    residual_stride_client,
    residual_stride_batch,
    residual_stride_channel,
    residual_stride_pixel,
    y_stride_client,
    y_stride_batch,
    y_stride_channel,
    y_stride_pixel,
    weight_stride_client,
    bias_stride_client,
    RESIDENT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    PIXELS: tl.constexpr,
    OVER_BATCH: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_POSITIONS: tl.constexpr,
):
    """Normalize a tile: with its own statistics if RESIDENT, else with those at mean_ptr and rstd_ptr."""
    GROUP_TILES: tl.constexpr = (GROUPS + TILE_GROUPS - 1) // TILE_GROUPS
    pid = tl.program_id(0).to(tl.int64)
    first_group = pid % GROUP_TILES * TILE_GROUPS
    split = pid // GROUP_TILES % splits
    unit = pid // GROUP_TILES // splits
    client = unit // samples
    sample = unit % samples
    group, channel, in_rows = channels(first_group, GROUPS, PER_GROUP, TILE_GROUPS, PADDED)
    position = split.to(tl.int32) * TILE_POSITIONS + tl.arange(0, TILE_POSITIONS)
    inside = in_rows[:, None] & (position < positions)[None, :]
    x_offset = offsets(
        client,
        sample,
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
    place = unit * GROUPS + group
    if RESIDENT:
        count = PER_GROUP * positions * 1.0  # not .to: positions == 1 is a compile-time constant without it
        mean, squares = moments(x, inside, count, TILE_GROUPS, PADDED)
        rstd = 1 / tl.sqrt(squares / count + eps)
        first_of_group = in_rows & (channel % PER_GROUP == 0)
        tl.store(mean_ptr + place, mean, mask=first_of_group)
        tl.store(rstd_ptr + place, rstd, mask=first_of_group)
    else:
        mean = tl.load(mean_ptr + place, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + place, mask=in_rows, other=0.0)
    weight = per_channel(weight_ptr, client, weight_stride_client, channel, in_rows, 1.0)
    bias = per_channel(bias_ptr, client, bias_stride_client, channel, in_rows, 0.0)
    y = (x - mean[:, None]) * (rstd * weight)[:, None] + bias[:, None]
    if residual_ptr is not None:
        residual_offset = offsets(
            client,
            sample,
            channel,
            position,
            residual_stride_client,
            residual_stride_batch,
            residual_stride_channel,
            residual_stride_pixel,
            PIXELS,
            OVER_BATCH,
        )
        y += tl.load(residual_ptr + residual_offset, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        y = tl.where(y <= 0, 0.0, y)  # keeps NaN
    elif ACTIVATION == "relu6":
        y = tl.where(y <= 0, 0.0, tl.where(y >= 6, 6.0, y))
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    elif ACTIVATION == "hardswish":
        y = y * tl.where(y <= -3, 0.0, tl.where(y >= 3, 6.0, y + 3)) / 6
    y_offset = offsets(
        client,
        sample,
        channel,
        position,
        y_stride_client,
        y_stride_batch,
        y_stride_channel,
        y_stride_pixel,
        PIXELS,
        OVER_BATCH,
    )
    tl.store(y_ptr + y_offset, y.to(y_ptr.dtype.element_ty), mask=inside)


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    activation: Activation = "none",
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute reference.py in fp32, bf16 or fp16; raises ValueError also for float64. Deterministic."""
    check(x, weight, bias, residual, groups, activation, mean, rstd)
    check_tensors(x, weight=weight, bias=bias, residual=residual, mean=mean, rstd=rstd)
    known = mean is not None and rstd is not None
    if mean is None or rstd is None:
        mean = x.new_empty(statistics_shape(x, groups), dtype=torch.float32)
        rstd = torch.empty_like(mean)
    else:
        mean, rstd = mean.contiguous(), rstd.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.fill_(eps).rsqrt_()
    if not collapses(x):
        options: dict[str, Any] = {"groups": groups, "eps": eps, "activation": activation}
        if known:
            options |= {"mean": mean, "rstd": rstd}
        packed, mean, rstd = norm_act(x.contiguous(), weight, bias, residual, **options)
        return y.copy_(packed), mean, rstd
    images, out = flat(x), flat(y)
    flat_residual = None if residual is None else flat(residual if collapses(residual) else residual.contiguous())
    weight, bias = (row if row is None or row.stride(1) == 1 else row.contiguous() for row in (weight, bias))
    tiling = plan(images, groups, elements=ELEMENTS)
    if not (tiling.resident or known):
        statistics(images, mean, rstd, eps, tiling)
    _apply_kernel[(x.shape[0] * tiling.samples * tiling.splits * tiling.group_tiles,)](
        x_ptr=images,
        weight_ptr=weight,
        bias_ptr=bias,
        residual_ptr=flat_residual,
        y_ptr=out,
        mean_ptr=mean,
        rstd_ptr=rstd,
        eps=eps,
        samples=tiling.samples,
        positions=tiling.positions,
        splits=tiling.splits,
        **strides("x", images),
        **strides("residual", flat_residual),
        **strides("y", out),
        weight_stride_client=0 if weight is None else weight.stride(0),
        bias_stride_client=0 if bias is None else bias.stride(0),
        RESIDENT=tiling.resident and not known,
        ACTIVATION=activation,
        **tiling.constants,
    )
    return y, mean, rstd
