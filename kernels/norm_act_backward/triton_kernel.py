"""Gradients of norm_act in Triton: one pass if a unit fits into a program, else one for sums and one more."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect
from ..norm_act.reference import Activation, check, statistics_shape
from ..norm_act.triton_tile import (
    channels,
    check_tensors,
    collapses,
    flat,
    group_sum,
    offsets,
    per_channel,
    plan,
    strides,
)

ELEMENTS = 8192
"""Maximum elements per program, of each tensor."""


@triton.jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,
    dx_ptr,
    dresidual_ptr,
    units,
    samples,
    positions,
    splits,
    grad_stride_client,
    grad_stride_batch,
    grad_stride_channel,
    grad_stride_pixel,
    x_stride_client,
    x_stride_batch,
    x_stride_channel,
    x_stride_pixel,
    residual_stride_client,
    residual_stride_batch,
    residual_stride_channel,
    residual_stride_pixel,
    dx_stride_client,
    dx_stride_batch,
    dx_stride_channel,
    dx_stride_pixel,
    weight_stride_client,
    bias_stride_client,
    SUM: tl.constexpr,
    APPLY: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    PIXELS: tl.constexpr,
    OVER_BATCH: tl.constexpr,
    TILE_GROUPS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_POSITIONS: tl.constexpr,
):
    """Compute a tile's sums of g and of g * n per channel, the gradients from the unit's sums, or both.

    Args:
        SUM: Store the sums of g * n and of g, [2, units, splits, channels], and dresidual.
        APPLY: Store dx; without SUM, from the sums [2, units, channels].
    """
    GROUP_TILES: tl.constexpr = (GROUPS + TILE_GROUPS - 1) // TILE_GROUPS
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    pid = tl.program_id(0).to(tl.int64)
    first_group = pid % GROUP_TILES * TILE_GROUPS
    split = pid // GROUP_TILES % splits
    unit = pid // GROUP_TILES // splits
    client = unit // samples
    sample = unit % samples
    group, channel, in_rows = channels(first_group, GROUPS, PER_GROUP, TILE_GROUPS, PADDED)
    position = split.to(tl.int32) * TILE_POSITIONS + tl.arange(0, TILE_POSITIONS)
    inside = in_rows[:, None] & (position < positions)[None, :]
    grad_offset = offsets(
        client,
        sample,
        channel,
        position,
        grad_stride_client,
        grad_stride_batch,
        grad_stride_channel,
        grad_stride_pixel,
        PIXELS,
        OVER_BATCH,
    )
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
    g = tl.load(grad_ptr + grad_offset, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + x_offset, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + unit * GROUPS + group, mask=in_rows, other=0.0)
    rstd = tl.load(rstd_ptr + unit * GROUPS + group, mask=in_rows, other=0.0)
    weight = per_channel(weight_ptr, client, weight_stride_client, channel, in_rows, 1.0)
    normal = (x - mean[:, None]) * rstd[:, None]  # outside, later factors are zero
    if ACTIVATION != "none":
        bias = per_channel(bias_ptr, client, bias_stride_client, channel, in_rows, 0.0)
        before = normal * weight[:, None] + bias[:, None]
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
            before += tl.load(residual_ptr + residual_offset, mask=inside, other=0.0).to(tl.float32)
        if ACTIVATION == "relu":
            g = tl.where(before <= 0, 0.0, g)
        elif ACTIVATION == "relu6":
            g = tl.where((before <= 0) | (before >= 6), 0.0, g)
        elif ACTIVATION == "hardswish":
            g = g * tl.where(before <= -3, 0.0, tl.where(before < 3, before / 3 + 0.5, 1.0))
        else:
            gate = tl.sigmoid(before)
            g = g * gate * (1 + before * (1 - gate))
    # the place where the fewest registers are in use: no version of Triton spills
    if dresidual_ptr is not None and not APPLY:
        dx_offset = offsets(
            client,
            sample,
            channel,
            position,
            dx_stride_client,
            dx_stride_batch,
            dx_stride_channel,
            dx_stride_pixel,
            PIXELS,
            OVER_BATCH,
        )
        tl.store(dresidual_ptr + dx_offset, g.to(dx_ptr.dtype.element_ty), mask=inside)
    if SUM:
        sum_g = tl.sum(g, axis=1)
        sum_gn = tl.sum(g * normal, axis=1)
        sums = sums_ptr + (unit * splits + split) * CHANNELS + channel
        tl.store(sums, sum_gn, mask=in_rows)
        tl.store(sums + units * splits * CHANNELS, sum_g, mask=in_rows)
    else:
        sums = sums_ptr + unit * CHANNELS + channel
        sum_gn = tl.load(sums, mask=in_rows, other=0.0)
        sum_g = tl.load(sums + units * CHANNELS, mask=in_rows, other=0.0)
    if APPLY:
        dx_offset = offsets(
            client,
            sample,
            channel,
            position,
            dx_stride_client,
            dx_stride_batch,
            dx_stride_channel,
            dx_stride_pixel,
            PIXELS,
            OVER_BATCH,
        )
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + dx_offset, g.to(dx_ptr.dtype.element_ty), mask=inside)
        count = PER_GROUP * positions * 1.0  # not .to: positions == 1 is a compile-time constant without it
        first = group_sum(weight * sum_g, TILE_GROUPS, PADDED) / count
        second = group_sum(weight * sum_gn, TILE_GROUPS, PADDED) / count
        dx = rstd[:, None] * (g * weight[:, None] - first[:, None] - normal * second[:, None])
        tl.store(dx_ptr + dx_offset, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    groups: int,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute reference.py in fp32, bf16 or fp16; raises ValueError also for float64. Deterministic.

    If a unit does not fit into a program, the first pass leaves the gradient before the activation in dresidual, and
    the second reads that instead of the gradient and the residual.
    """
    check(x, weight, bias, residual, groups, activation)
    check_tensors(x, weight=weight, bias=bias, residual=residual)
    expect("grad", grad, x.shape, x.device, dense=False)
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        expect(name, statistic, statistics_shape(x, groups), x.device, torch.float32, dense=False)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dx = torch.empty_like(x)
    dresidual = None if residual is None else torch.empty_like(x)
    if x.numel() == 0:
        return dx, mean.new_zeros((2, x.shape[0], x.shape[2])), dresidual
    if not collapses(x):
        saved = (weight, bias, residual, mean, rstd)
        packed, daffine, added = norm_act_backward(grad, x.contiguous(), *saved, groups=groups, activation=activation)
        return dx.copy_(packed), daffine, None if dresidual is None or added is None else dresidual.copy_(added)
    images = flat(x)
    grad = flat(grad if collapses(grad) else grad.contiguous())
    flat_residual = None if residual is None else flat(residual if collapses(residual) else residual.contiguous())
    weight, bias = (row if row is None or row.stride(1) == 1 else row.contiguous() for row in (weight, bias))
    tiling = plan(images, groups, elements=ELEMENTS)
    units = x.shape[0] * tiling.samples
    sums = mean.new_empty((2, units, tiling.splits, x.shape[2]))

    def launch(
        grad: Tensor, residual: Tensor | None, activation: Activation, sums: Tensor, *, store_sums: bool, apply: bool
    ) -> None:
        _backward_kernel[(units * tiling.splits * tiling.group_tiles,)](
            grad_ptr=grad,
            x_ptr=images,
            weight_ptr=weight,
            bias_ptr=bias,
            residual_ptr=residual,
            mean_ptr=mean,
            rstd_ptr=rstd,
            sums_ptr=sums,
            dx_ptr=flat(dx),
            dresidual_ptr=None if dresidual is None or not store_sums else flat(dresidual),
            units=units,
            samples=tiling.samples,
            positions=tiling.positions,
            splits=tiling.splits,
            **strides("grad", grad),
            **strides("x", images),
            **strides("residual", residual),
            **strides("dx", flat(dx)),
            weight_stride_client=0 if weight is None else weight.stride(0),
            bias_stride_client=0 if bias is None else bias.stride(0),
            SUM=store_sums,
            APPLY=apply,
            ACTIVATION=activation,
            **tiling.constants,
        )

    launch(grad, flat_residual, activation, sums, store_sums=True, apply=tiling.resident)
    if not tiling.resident:
        sums = sums.sum(dim=2)
        before = (grad, None, activation) if dresidual is None else (flat(dresidual), None, "none")
        launch(*before, sums, store_sums=False, apply=True)
    by_client = sums.view(2, x.shape[0], -1, x.shape[2])
    return dx, by_client[:, :, 0] if by_client.shape[2] == 1 else by_client.sum(dim=2), dresidual
