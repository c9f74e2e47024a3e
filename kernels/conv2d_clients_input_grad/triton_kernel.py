"""Gradient of the stacked convolution's images as an implicit matrix product on tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..conv2d_clients.geometry import Geometry, empty, pack
from ..conv2d_clients.triton_tiles import PIXELS_BY_CHANNELS, WINDOW, check_operands, launch, prune


@triton.autotune(
    PIXELS_BY_CHANNELS,
    key=["pixels", "grad_stride_channel", *WINDOW, "PRECISION"],
    prune_configs_by=prune("IN", ("OUT",), images="grad", channels="OUT"),
    cache_results=True,
)
@triton.jit
def _input_grad_kernel(
    grad_ptr,
    weight_ptr,
    added_ptr,
    dx_ptr,
    pixels,
    height,
    width,
    grad_stride_client,
    grad_stride_batch,
    grad_stride_channel,
    grad_stride_h,
    grad_stride_w,
    dx_stride_client,
    dx_stride_batch,
    dx_stride_channel,
    dx_stride_h,
    dx_stride_w,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,  # per group, as OUT
    OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    PHASE_H: tl.constexpr,  # ceil(height / STEP_H), as PHASE_W
    PHASE_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT_FIRST: tl.constexpr,  # filters [out, kh, kw, in] of each group, else [in, kh, kw, out]
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    COLUMN_TILES: tl.constexpr = (IN + COLUMNS - 1) // COLUMNS
    DEPTH_TILES: tl.constexpr = (OUT + DEPTH - 1) // DEPTH
    row_tiles = tl.cdiv(pixels, ROWS)
    pid = tl.program_id(0)
    row_tile = pid // COLUMN_TILES % row_tiles
    phase = pid // COLUMN_TILES // row_tiles % (STEP_H * STEP_W)
    unit = (pid // COLUMN_TILES // row_tiles // (STEP_H * STEP_W)).to(tl.int64)  # client and group
    client = unit // GROUPS
    group = unit % GROUPS

    # pixels with the same remainder by the stride, a phase, use the same taps: every STEP-th of the filter
    phase_h = phase // STEP_W
    phase_w = phase % STEP_W
    first_h = (phase_h + PAD_H) % STEP_H
    first_w = (phase_w + PAD_W) % STEP_W
    taps_h = (KH - first_h + STEP_H - 1) // STEP_H
    taps_w = (KW - first_w + STEP_W - 1) // STEP_W

    pixel = row_tile * ROWS + tl.arange(0, ROWS)
    sample = (pixel // (PHASE_H * PHASE_W)).to(tl.int64)
    h = pixel // PHASE_W % PHASE_H * STEP_H + phase_h
    w = pixel % PHASE_W * STEP_W + phase_w
    in_rows = (pixel < pixels) & (h < height) & (w < width)
    column = pid % COLUMN_TILES * COLUMNS + tl.arange(0, COLUMNS)
    in_columns = column < IN

    grad_rows = grad_ptr + client * grad_stride_client + group * OUT * grad_stride_channel + sample * grad_stride_batch
    weight_columns = weight_ptr + unit * (OUT * KH * KW * IN)
    weight_columns += column if OUT_FIRST else column * (KH * KW * OUT)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for turn in range(0, taps_h * taps_w * DEPTH_TILES):
        tap = turn // DEPTH_TILES
        tap_h = first_h + tap // taps_w * STEP_H
        tap_w = first_w + tap % taps_w * STEP_W
        channel = (turn % DEPTH_TILES * DEPTH + tl.arange(0, DEPTH)).to(tl.int64)
        from_h = h + PAD_H - tap_h * DILATION_H
        from_w = w + PAD_W - tap_w * DILATION_W
        out_h = from_h // STRIDE_H
        out_w = from_w // STRIDE_W
        inside = in_rows & (from_h >= 0) & (from_w >= 0) & (out_h < OUT_H) & (out_w < OUT_W)
        inside = inside & (from_h % STRIDE_H == 0) & (from_w % STRIDE_W == 0)
        offset = grad_rows + out_h.to(tl.int64) * grad_stride_h + out_w.to(tl.int64) * grad_stride_w
        grad = tl.load(
            offset[:, None] + (channel * grad_stride_channel)[None, :],
            mask=inside[:, None] & (channel < OUT)[None, :],
            other=0.0,
        )
        tap_place = tap_h * KW + tap_w
        place = (channel * (KH * KW) + tap_place) * IN if OUT_FIRST else tap_place * OUT + channel
        weight = tl.load(
            weight_columns[None, :] + place[:, None],
            mask=in_columns[None, :] & (channel < OUT)[:, None],
            other=0.0,
        )
        total = tl.dot(grad, weight, total, input_precision=PRECISION)

    rows = client * dx_stride_client + sample * dx_stride_batch
    rows += h.to(tl.int64) * dx_stride_h + w.to(tl.int64) * dx_stride_w
    place = rows[:, None] + ((group * IN + column) * dx_stride_channel)[None, :]
    inside = in_rows[:, None] & in_columns[None, :]
    if added_ptr is not None:
        total += tl.load(added_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + place, total.to(dx_ptr.dtype.element_ty), mask=inside)


def conv2d_clients_input_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    geometry: Geometry,
    packed: Tensor | None = None,
    added: Tensor | None = None,
    tf32: bool = True,
    tile: triton.Config | None = None,
) -> Tensor:
    """Compute reference.py in fp32, bf16 or fp16 with sums in fp32. Deterministic for a given tile.

    Filters of two bytes are read as the forward pass packs them; others are packed anew.

    Args:
        packed: The filters as `pack` returns them, or None; not used in fp32.
        tf32: Whether fp32 inputs may be rounded to TF32; else each product is three of TF32, about as exact as fp32.
        tile: The tile; None: the fastest, timed once.

    Raises:
        ValueError: As in reference.py, and for other dtypes.
    """
    shape = geometry.check(x, weight)
    _, batch, out_channels, out_h, out_w = shape
    check_operands(x, weight=(weight, weight.shape), grad=(grad, shape), added=(added, x.shape))
    grad = grad.to(x.dtype)
    dx = empty(x.shape, x)
    if dx.numel() == 0:
        return dx
    if grad.numel() == 0:
        return dx.zero_() if added is None else dx.copy_(added)
    if added is not None and (added.stride() != dx.stride() or added.dtype != dx.dtype):
        added = empty(x.shape, x).copy_(added)
    clients, groups, (height, width) = x.shape[0], geometry.groups, x.shape[3:]
    # a dilated filter with a stride has no fixed taps per phase: then one phase, with most taps masked
    step_h, step_w = geometry.stride if geometry.dilation == (1, 1) else (1, 1)
    phase_h, phase_w = triton.cdiv(height, step_h), triton.cdiv(width, step_w)
    pixels = batch * phase_h * phase_w
    assert pixels < 2**31 - 2**10, "pixels are counted in int32, whole tiles of them"
    per_group = weight.shape[2]
    out_first = grad.element_size() == 2  # Hopper multiplies TF32 with its operands along the sum alone
    if not out_first:
        by_group = weight.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 5, 2)
        packed = grad.new_empty(by_group.shape).copy_(by_group)
    elif packed is None:
        packed = pack(weight, grad.dtype)

    def grid(sizes: dict[str, int]) -> tuple[int]:
        tiles = triton.cdiv(pixels, sizes["ROWS"]) * triton.cdiv(per_group, sizes["COLUMNS"])
        return (clients * groups * step_h * step_w * tiles,)

    launch(
        _input_grad_kernel,
        grid,
        tile,
        grad_ptr=grad,
        weight_ptr=packed,
        added_ptr=added,
        dx_ptr=dx,
        pixels=pixels,
        height=height,
        width=width,
        grad_stride_client=grad.stride(0),
        grad_stride_batch=grad.stride(1),
        grad_stride_channel=grad.stride(2),
        grad_stride_h=grad.stride(3),
        grad_stride_w=grad.stride(4),
        dx_stride_client=dx.stride(0),
        dx_stride_batch=dx.stride(1),
        dx_stride_channel=dx.stride(2),
        dx_stride_h=dx.stride(3),
        dx_stride_w=dx.stride(4),
        GROUPS=groups,
        IN=per_group,
        OUT=out_channels // groups,
        KH=weight.shape[3],
        KW=weight.shape[4],
        OUT_H=out_h,
        OUT_W=out_w,
        PHASE_H=phase_h,
        PHASE_W=phase_w,
        STEP_H=step_h,
        STEP_W=step_w,
        STRIDE_H=geometry.stride[0],
        STRIDE_W=geometry.stride[1],
        PAD_H=geometry.padding[0],
        PAD_W=geometry.padding[1],
        DILATION_H=geometry.dilation[0],
        DILATION_W=geometry.dilation[1],
        PRECISION="tf32" if tf32 else "tf32x3",
        OUT_FIRST=out_first,
    )
    return dx
