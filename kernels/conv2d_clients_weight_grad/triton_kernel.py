"""Gradient of the stacked convolution's filters as an implicit matrix product on tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..conv2d_clients.geometry import Geometry
from ..conv2d_clients.triton_tiles import TERMS_BY_CHANNELS, WINDOW, check_operands, launch, prune

PROGRAMS = 512
"""Target number of programs of 64 x 64 elements for the split of the sum over pixels: four per multiprocessor of a
large GPU. The order of the sum depends neither on the device nor on the tile."""
MIN_PIXELS = 512
"""Minimum pixels per split."""


@triton.autotune(
    TERMS_BY_CHANNELS,
    key=["pixels", "pixels_per_split", "x_stride_channel", "grad_stride_channel", *WINDOW, "PRECISION"],
    prune_configs_by=prune("OUT", ("pixels",), images="x", channels="IN"),
    cache_results=True,
)
@triton.jit(do_not_specialize=["splits"])
def _weight_grad_kernel(
    grad_ptr,
    x_ptr,
    partial_ptr,
    pixels,
    pixels_per_split,
    splits,
    height,
    width,
    partial_stride_split,
    partial_stride_client,
    grad_stride_client,
    grad_stride_batch,
    grad_stride_channel,
    grad_stride_h,
    grad_stride_w,
    x_stride_client,
    x_stride_batch,
    x_stride_channel,
    x_stride_h,
    x_stride_w,
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
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    TERMS: tl.constexpr = KH * KW * IN
    ROW_TILES: tl.constexpr = (TERMS + ROWS - 1) // ROWS
    COLUMN_TILES: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    pid = tl.program_id(0)
    column_tile = pid // ROW_TILES % COLUMN_TILES
    split = pid // ROW_TILES // COLUMN_TILES % splits
    unit = (pid // ROW_TILES // COLUMN_TILES // splits).to(tl.int64)  # client and group
    client = unit // GROUPS
    group = unit % GROUPS

    term = pid % ROW_TILES * ROWS + tl.arange(0, ROWS)
    in_rows = term < TERMS
    tap_h = term // IN // KW * DILATION_H
    tap_w = term // IN % KW * DILATION_W
    in_channel = (group * IN + term % IN).to(tl.int64)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < OUT

    x_columns = x_ptr + client * x_stride_client + in_channel * x_stride_channel
    x_columns += tap_h.to(tl.int64) * x_stride_h + tap_w.to(tl.int64) * x_stride_w
    grad_columns = grad_ptr + client * grad_stride_client + (group * OUT + column) * grad_stride_channel
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    end = tl.minimum((split + 1) * pixels_per_split, pixels)
    for start in range(split * pixels_per_split, end, DEPTH):
        pixel = start + tl.arange(0, DEPTH)
        in_depth = pixel < end
        sample = (pixel // (OUT_H * OUT_W)).to(tl.int64)
        out_h = pixel // OUT_W % OUT_H
        out_w = pixel % OUT_W
        top = out_h * STRIDE_H - PAD_H
        left = out_w * STRIDE_W - PAD_W
        h = top[:, None] + tap_h[None, :]
        w = left[:, None] + tap_w[None, :]
        inside = in_depth[:, None] & in_rows[None, :] & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        x_offset = sample * x_stride_batch + top.to(tl.int64) * x_stride_h + left.to(tl.int64) * x_stride_w
        x = tl.load(x_columns[None, :] + x_offset[:, None], mask=inside, other=0.0)
        grad_offset = sample * grad_stride_batch + out_h.to(tl.int64) * grad_stride_h
        grad_offset += out_w.to(tl.int64) * grad_stride_w
        grad = tl.load(
            grad_columns[None, :] + grad_offset[:, None], mask=in_depth[:, None] & in_columns[None, :], other=0.0
        )
        total = tl.dot(tl.trans(x), grad, total, input_precision=PRECISION)

    # in the order of the filters [out, in, kh, kw]: nothing is left to be transposed
    place = split.to(tl.int64) * partial_stride_split + client * partial_stride_client + (group * OUT + column) * TERMS
    along = term % IN * (KH * KW) + term // IN
    tl.store(partial_ptr + place[None, :] + along[:, None], total, mask=in_rows[:, None] & in_columns[None, :])


def conv2d_clients_weight_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    geometry: Geometry,
    out: Tensor | None = None,
    tf32: bool = True,
    tile: triton.Config | None = None,
) -> Tensor:
    """Compute reference.py in fp32, bf16 or fp16 with sums in fp32. Deterministic for a given tile.

    The sum over pixels is split between programs, whose fp32 parts are added in a fixed order, without atomics.

    Args:
        out: Where the result is written, fp32 [clients, out, in / groups, kh, kw] with contiguous filters; or None.
        tf32: Whether fp32 inputs may be rounded to TF32; else each product is three of TF32, about as exact as fp32.
        tile: The tile; None: the fastest, timed once.

    Raises:
        ValueError: As in reference.py, and for other dtypes.
    """
    shape = geometry.check(x, weight)
    _, batch, out_channels, out_h, out_w = shape
    check_operands(x, weight=(weight, weight.shape), grad=(grad, shape))
    if out is not None:
        check_operands(x, out=(out, weight.shape))
        assert out.dtype == torch.float32 and out[:1].is_contiguous(), "filters of a client lie side by side"
    if grad.numel() == 0 or weight.numel() == 0:
        return weight.new_zeros(weight.shape) if out is None else out.zero_()
    grad = grad.to(x.dtype)
    clients, groups = x.shape[0], geometry.groups
    per_group = out_channels // groups
    terms = weight[0, 0].numel()
    units = clients * groups
    pixels = batch * out_h * out_w
    assert pixels < 2**30, "pixels are counted in int32, and the last split's end lies beyond them"

    products = units * triton.cdiv(terms, 64) * triton.cdiv(per_group, 64)
    per_split = triton.cdiv(pixels, max(1, min(triton.cdiv(PROGRAMS, products), pixels // MIN_PIXELS)))
    per_split = triton.cdiv(per_split, 128) * 128
    splits = triton.cdiv(pixels, per_split)
    partial = out.unsqueeze(0) if out is not None and splits == 1 else None
    if partial is None:
        partial = torch.empty((splits, *weight.shape), dtype=torch.float32, device=x.device)

    def grid(sizes: dict[str, int]) -> tuple[int]:
        return (units * splits * triton.cdiv(terms, sizes["ROWS"]) * triton.cdiv(per_group, sizes["COLUMNS"]),)

    launch(
        _weight_grad_kernel,
        grid,
        tile,
        grad_ptr=grad,
        x_ptr=x,
        partial_ptr=partial,
        pixels=pixels,
        pixels_per_split=per_split,
        splits=splits,
        height=x.shape[3],
        width=x.shape[4],
        partial_stride_split=partial.stride(0),
        partial_stride_client=partial.stride(1),
        grad_stride_client=grad.stride(0),
        grad_stride_batch=grad.stride(1),
        grad_stride_channel=grad.stride(2),
        grad_stride_h=grad.stride(3),
        grad_stride_w=grad.stride(4),
        x_stride_client=x.stride(0),
        x_stride_batch=x.stride(1),
        x_stride_channel=x.stride(2),
        x_stride_h=x.stride(3),
        x_stride_w=x.stride(4),
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
        PRECISION="tf32" if tf32 else "tf32x3",
    )
    if out is not None:
        return out if splits == 1 else torch.sum(partial, dim=0, out=out)
    return (partial[0] if splits == 1 else partial.sum(dim=0)).to(weight.dtype)
