"""Stacked convolution as an implicit matrix product on tensor cores: the forward pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..norm_act.triton_statistics import combine
from .geometry import Geometry, empty_last, pack
from .triton_tiles import PIXELS_BY_CHANNELS, WINDOW, check_operands, launch, prune


@triton.autotune(
    PIXELS_BY_CHANNELS,
    key=["pixels", "x_stride_channel", *WINDOW, "PRECISION", "HAS_STATISTICS"],
    prune_configs_by=prune("OUT", ("KH", "KW", "IN"), images="x", channels="IN"),
    cache_results=True,
)
@triton.jit
def _forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    means_ptr,
    squares_ptr,
    pixels,
    height,
    width,
    x_stride_client,
    x_stride_batch,
    x_stride_channel,
    x_stride_h,
    x_stride_w,
    y_stride_client,
    y_stride_batch,
    y_stride_channel,
    y_stride_h,
    y_stride_w,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,  # per group, as OUT
    OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    TERMS: tl.constexpr = KH * KW * IN
    COLUMN_TILES: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    row_tiles = tl.cdiv(pixels, ROWS)
    pid = tl.program_id(0)
    row_tile = pid // COLUMN_TILES % row_tiles
    unit = (pid // COLUMN_TILES // row_tiles).to(tl.int64)  # client and group
    client = unit // GROUPS
    group = unit % GROUPS

    pixel = row_tile * ROWS + tl.arange(0, ROWS)
    in_rows = pixel < pixels
    sample = (pixel // (OUT_H * OUT_W)).to(tl.int64)
    out_h = pixel // OUT_W % OUT_H
    out_w = pixel % OUT_W
    top = out_h * STRIDE_H - PAD_H
    left = out_w * STRIDE_W - PAD_W
    column = pid % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < OUT
    out_channel = group * OUT + column

    x_rows = x_ptr + client * x_stride_client + group * IN * x_stride_channel + sample * x_stride_batch
    x_rows += top.to(tl.int64) * x_stride_h + left.to(tl.int64) * x_stride_w
    weight_columns = weight_ptr + (unit * OUT + column) * TERMS
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, TERMS, DEPTH):
        term = start + tl.arange(0, DEPTH)
        if IN % DEPTH == 0:  # one tap: only rows can leave the image
            tap_h = start // IN // KW * DILATION_H
            tap_w = start // IN % KW * DILATION_W
            # start % IN as an explicit multiple of DEPTH; else Triton 3.8 loads an element at a time
            channel = (start // DEPTH % (IN // DEPTH) * DEPTH + tl.arange(0, DEPTH)).to(tl.int64)
            h = top + tap_h
            w = left + tap_w
            inside = (in_rows & (h >= 0) & (h < height) & (w >= 0) & (w < width))[:, None]
            offset = tap_h.to(tl.int64) * x_stride_h + tap_w.to(tl.int64) * x_stride_w + channel * x_stride_channel
        else:
            tap_h = term // IN // KW * DILATION_H
            tap_w = term // IN % KW * DILATION_W
            channel = (term % IN).to(tl.int64)
            h = top[:, None] + tap_h[None, :]
            w = left[:, None] + tap_w[None, :]
            inside = in_rows[:, None] & (term < TERMS)[None, :]
            inside = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            offset = tap_h.to(tl.int64) * x_stride_h + tap_w.to(tl.int64) * x_stride_w + channel * x_stride_channel
        x = tl.load(x_rows[:, None] + offset[None, :], mask=inside, other=0.0)
        in_weight = in_columns[None, :] & (term < TERMS)[:, None]
        weight = tl.load(weight_columns[None, :] + term[:, None], mask=in_weight, other=0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + client * (GROUPS * OUT) + out_channel, mask=in_columns, other=0.0)
        total += bias.to(tl.float32)[None, :]
    y = total.to(y_ptr.dtype.element_ty)
    y_rows = y_ptr + client * y_stride_client + sample * y_stride_batch
    y_rows += out_h.to(tl.int64) * y_stride_h + out_w.to(tl.int64) * y_stride_w
    tl.store(
        y_rows[:, None] + (out_channel * y_stride_channel)[None, :], y, mask=in_rows[:, None] & in_columns[None, :]
    )
    if HAS_STATISTICS:  # mean and squared deviations of the tile's rounded values
        count = tl.minimum(pixels - row_tile * ROWS, ROWS).to(tl.float32)
        rounded = tl.where(in_rows[:, None], y.to(tl.float32), 0.0)
        mean = tl.sum(rounded, axis=0) / count
        deviation = tl.where(in_rows[:, None], rounded - mean[None, :], 0.0)
        place = (client * row_tiles + row_tile) * (GROUPS * OUT) + out_channel
        tl.store(means_ptr + place, mean, mask=in_columns)
        tl.store(squares_ptr + place, tl.sum(deviation * deviation, axis=0), mask=in_columns)


def conv2d_clients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: Geometry,
    statistics_eps: float | None = None,
    packed: Tensor | None = None,
    tf32: bool = True,
    tile: triton.Config | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Compute reference.py in fp32, bf16 or fp16 with sums in fp32. Deterministic for a given tile.

    The result is channels-last whatever the layout of x is, for the kernels that read it. The filters, of any
    floating-point dtype, are first repacked in that of x, a small cost beside the images.

    Args:
        packed: The filters as `pack` returns them, or None.
        tf32: Whether fp32 inputs may be rounded to TF32; else each product is three of TF32, about as exact as fp32.
        tile: The tile; None: the fastest, timed once.

    Raises:
        ValueError: As in reference.py, and for other dtypes.
    """
    shape = geometry.check(x, weight)
    clients, batch, out_channels, out_h, out_w = shape
    groups = geometry.groups
    check_operands(x, weight=(weight, weight.shape), bias=(bias, (clients, out_channels)))
    y = empty_last(shape, x)
    pixels = batch * out_h * out_w
    assert pixels < 2**31 - 2**10, "pixels are counted in int32, whole tiles of them"
    per_group = out_channels // groups
    rows = min(one.kwargs["ROWS"] for one in (PIXELS_BY_CHANNELS if tile is None else [tile]))
    means = squares = None
    if statistics_eps is not None:
        mean = x.new_empty((clients, 1, out_channels), dtype=torch.float32)
        rstd = torch.empty_like(mean)
        if y.numel() == 0:
            return y, mean.zero_(), rstd.fill_(statistics_eps).rsqrt_()
        means = x.new_empty((clients, triton.cdiv(pixels, rows), out_channels), dtype=torch.float32)
        squares = torch.empty_like(means)
    if y.numel() == 0:
        return y
    packed = pack(weight, x.dtype) if packed is None else packed
    if bias is not None:
        bias = bias.contiguous()

    def grid(sizes: dict[str, int]) -> tuple[int]:
        nonlocal rows
        rows = sizes["ROWS"]
        tiles = triton.cdiv(pixels, rows) * triton.cdiv(per_group, sizes["COLUMNS"])
        return (clients * groups * tiles,)

    launch(
        _forward_kernel,
        grid,
        tile,
        x_ptr=x,
        weight_ptr=packed,
        bias_ptr=bias,
        y_ptr=y,
        means_ptr=means,
        squares_ptr=squares,
        pixels=pixels,
        height=x.shape[3],
        width=x.shape[4],
        x_stride_client=x.stride(0),
        x_stride_batch=x.stride(1),
        x_stride_channel=x.stride(2),
        x_stride_h=x.stride(3),
        x_stride_w=x.stride(4),
        y_stride_client=y.stride(0),
        y_stride_batch=y.stride(1),
        y_stride_channel=y.stride(2),
        y_stride_h=y.stride(3),
        y_stride_w=y.stride(4),
        GROUPS=groups,
        IN=weight.shape[2],
        OUT=per_group,
        KH=weight.shape[3],
        KW=weight.shape[4],
        OUT_H=out_h,
        OUT_W=out_w,
        STRIDE_H=geometry.stride[0],
        STRIDE_W=geometry.stride[1],
        PAD_H=geometry.padding[0],
        PAD_W=geometry.padding[1],
        DILATION_H=geometry.dilation[0],
        DILATION_W=geometry.dilation[1],
        HAS_BIAS=bias is not None,
        HAS_STATISTICS=means is not None,
        PRECISION="tf32" if tf32 else "tf32x3",
    )
    if statistics_eps is None or means is None or squares is None:
        return y
    combine(means, squares, mean, rstd, statistics_eps, positions=pixels, tile_positions=rows, per_group=1)
    return y, mean, rstd
