"""Tiles of the Triton convolutions' matrix products, for Triton's autotuner.

A program holds ROWS x COLUMNS of a product [rows, depth] x [depth, columns] in registers and adds DEPTH terms per loop
iteration, with the loads of num_stages iterations in flight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs

from ..arguments import expect

WINDOW = ["GROUPS", "IN", "OUT", "KH", "KW", "OUT_H", "OUT_W", "STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W"]
"""Autotuning keys common to all kernels; Triton adds the dtypes.

The number of clients is not a key: the last, smaller chunk of a round uses the tile of the others, and with it their
order of summation.
"""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ALL_REGISTERS = 255
"""Maximum registers of a thread. By default the assembler may stop at 80, 96, 128 or 168 for more resident blocks, and
spill 8 bytes on sm_80 with fp32 operands in many shapes."""


def _tile(rows: int, columns: int, depth: int, warps: int, stages: int, registers: int | None = None) -> triton.Config:
    sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    return triton.Config(sizes, num_warps=warps, num_stages=stages, maxnreg=registers)


# Rows are pixels and columns channels. A program covers all channels if possible, so that images are read once.
# Four warps cannot hold 64 x 64 with depth 64 nor, with Triton 3.6, 128 x 64 with depth 32: on sm_80 these spill in
# some shapes with any register count.
PIXELS_BY_CHANNELS = [
    _tile(128, 16, 16, 4, 4),
    _tile(128, 16, 32, 4, 3),
    _tile(128, 16, 64, 4, 3, ALL_REGISTERS),  # else 8 bytes spill in the gradient of 64 channels on sm_80
    _tile(256, 16, 16, 8, 4),
    _tile(64, 16, 32, 4, 4),
    _tile(128, 32, 32, 4, 3, ALL_REGISTERS),  # else 8 bytes spill on sm_100 with Triton 3.6
    _tile(128, 32, 16, 4, 4),
    _tile(128, 32, 64, 4, 3),
    _tile(256, 32, 32, 8, 3),
    _tile(128, 64, 64, 8, 3),
    _tile(64, 64, 32, 4, 4),
    _tile(256, 64, 32, 8, 3, ALL_REGISTERS),  # else 8 bytes spill on sm_80 with Triton 3.6
    _tile(128, 128, 64, 8, 3),
    _tile(128, 128, 32, 8, 3),
    _tile(64, 16, 16, 4, 3),
    _tile(64, 32, 16, 4, 3),
    _tile(64, 64, 16, 4, 3),
]

# Rows are taps and input channels, columns output channels; the sum runs over pixels.
TERMS_BY_CHANNELS = [
    _tile(64, 16, 64, 4, 3, ALL_REGISTERS),  # else 8 bytes spill for 1x1 filters on sm_80
    _tile(128, 16, 64, 4, 3),
    _tile(64, 16, 128, 4, 2),
    _tile(64, 32, 64, 4, 3),
    _tile(128, 32, 64, 4, 3),
    _tile(64, 64, 64, 4, 3),
    _tile(64, 64, 32, 4, 4),
    _tile(128, 64, 32, 4, 3),
    _tile(128, 64, 64, 8, 3),
    _tile(64, 16, 32, 4, 4),
    _tile(64, 32, 32, 4, 4),
    _tile(64, 16, 16, 4, 3),
    _tile(64, 32, 16, 4, 3),
    _tile(64, 64, 16, 4, 3),
]

PER_WARP = 1536
PER_WARP_FP32 = 1280
"""Elements of result and images per iteration that a warp holds without spills, compiled for sm_80, sm_90 and sm_100:
for elements of 2 bytes with element-wise loads, and for elements of 4 bytes."""

PER_WARP_IMAGES = 512
"""The same for fp32 images alone, with element-wise loads (an address and a mask each) or products of three in TF32
(operands held twice)."""

PER_WARP_SCATTERED = 256
"""The same for element-wise loads with operands held twice, or with taps that differ between pixels. Other tiles this
small are for 4-byte elements only."""


def fitting_tiles(
    tiles: list[triton.Config],
    columns: int,
    depth: int,
    *,
    itemsize: int,
    narrow: bool,
    split: bool,
    phases: bool = False,
) -> list[triton.Config]:
    """Return the tiles with little padding and no spills: as wide as `columns` (16 to 128), and not much deeper than
    `depth`.

    Args:
        tiles: All tiles.
        columns: Channels of the product.
        depth: Length of its sum.
        itemsize: Bytes of an operand's element.
        narrow: Whether image loads are one element wide.
        split: Whether fp32 products are made of three in TF32.
        phases: Whether pixels differ in their taps.
    """
    wide, deep = (max(16, triton.next_power_of_2(size)) for size in (columns, depth))
    widths = {64, 128} if wide >= 128 else {min(wide, 64)}
    scattered = narrow and (split or phases)
    limit = PER_WARP_FP32 if itemsize > 2 else PER_WARP if narrow else math.inf

    def per_warp(tile: triton.Config, *others: str) -> float:
        return tile.kwargs["ROWS"] * sum(tile.kwargs[name] for name in others) / tile.num_warps

    def fits(tile: triton.Config) -> bool:
        small = per_warp(tile, "DEPTH") <= PER_WARP_SCATTERED
        return (
            (small if scattered else itemsize > 2 or not small)
            and per_warp(tile, "COLUMNS", "DEPTH") <= limit
            and (itemsize == 2 or not (narrow or split) or per_warp(tile, "DEPTH") <= PER_WARP_IMAGES)
        )

    as_wide = [tile for tile in tiles if tile.kwargs["COLUMNS"] in widths and fits(tile)]
    deepest = max(deep, min(tile.kwargs["DEPTH"] for tile in as_wide))
    found = [tile for tile in as_wide if tile.kwargs["DEPTH"] <= deepest]
    return [_with_all_registers(tile) for tile in found] if itemsize > 2 else found


def _with_all_registers(tile: triton.Config) -> triton.Config:
    return triton.Config(tile.kwargs, num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=ALL_REGISTERS)


def prune(
    columns: str, depth: tuple[str, ...], *, images: str, channels: str
) -> dict[str, Callable[..., list[triton.Config]]]:
    """Return `fitting_tiles` for the autotuner, by the names of a kernel's arguments and constants.

    Args:
        columns: Constant with the columns.
        depth: Constants whose product is the depth.
        images: Argument {images}_ptr.
        channels: Constant with the image channels per group.
    """

    def select(tiles: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
        known = {**arguments, **constants}
        itemsize = known[f"{images}_ptr"].element_size()
        return fitting_tiles(
            tiles,
            known[columns],
            math.prod(known[name] for name in depth),
            itemsize=itemsize,
            narrow=known[f"{images}_stride_channel"] != 1 or known[channels] % 16 != 0,
            split=itemsize == 4 and known["PRECISION"] == "tf32x3",
            phases="STEP_H" in known and known["STRIDE_H"] * known["STRIDE_W"] > 1,
        )

    return {"early_config_prune": select}


def check_operands(x: Tensor, **others: tuple[Tensor | None, Sequence[int]]) -> None:
    """Raise ValueError for an unsupported dtype of the images, or others {name: (tensor, shape)} that do not fit."""
    if x.dtype not in DTYPES:
        raise ValueError(f"the Triton convolutions take fp32, bf16 or fp16, not {x.dtype}; other strategies take that")
    for name, (tensor, shape) in others.items():
        expect(name, tensor, shape, x.device, dense=False)


def launch(
    kernel: Any, grid: Callable[[dict[str, int]], tuple[int]], tile: triton.Config | None, **arguments: Any
) -> None:
    """Launch an autotuned kernel with a given tile, else with the fastest one, timed once.

    The choice is stored beside Triton's compiled kernels, so that later runs repeat it. Under
    torch.use_deterministic_algorithms and in Triton's interpreter it is the first tile that fits, because another tile
    may sum in another order.
    """
    if tile is None and (torch.are_deterministic_algorithms_enabled() or knobs.runtime.interpret):
        tile = kernel.early_config_prune(kernel.configs, {}, **arguments)[0]
    if tile is None:
        kernel[grid](**arguments)
    else:
        kernel.fn[grid](**arguments, **tile.all_kwargs())
