"""The tiles into which the Triton kernels cut their matrix products, for Triton's autotuner to choose from.

A program keeps ROWS x COLUMNS of a product [rows, depth] x [depth, columns] in registers and takes DEPTH of the sum at
each turn of its loop, with num_stages turns' loads under way at once.
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
"""Of the keys by which a choice is remembered, what all kernels have in common; Triton adds the dtypes.

The number of clients is not among them: the last chunk of a round, which has fewer, takes the tile of the others, and
with it their order of summation.
"""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Registers that a thread can have. Where nothing is said the assembler may stop at 80, 96, 128 or 168, so that more
# blocks are resident, and spill 8 bytes on sm_80, with fp32 operands in many shapes.
ALL_REGISTERS = 255


def _tile(rows: int, columns: int, depth: int, warps: int, stages: int, registers: int | None = None) -> triton.Config:
    sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    return triton.Config(sizes, num_warps=warps, num_stages=stages, maxnreg=registers)


# Rows are pixels and columns channels. A program takes all channels where it can, so that the images are read once.
# Four warps do not take 64 x 64 and 64 deep, nor, with Triton 3.6, 128 x 64 and 32 deep: on sm_80 those spill in one
# shape or another whatever their registers.
PIXELS_BY_CHANNELS = [
    _tile(128, 16, 16, 4, 4),
    _tile(128, 16, 32, 4, 3),
    _tile(128, 16, 64, 4, 3),
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

# Elements of the result and of the images at a turn that a warp holds without spilling registers, compiled for sm_80,
# sm_90 and sm_100: of 2 bytes and loaded one by one, and of 4 bytes.
PER_WARP = 1536
PER_WARP_FP32 = 1280

# The same of fp32 images alone where they are loaded one by one, each with an address and a mask of its own, or where
# each product is three of TF32, whose operands are held twice.
PER_WARP_IMAGES = 512

# The same of images that are loaded one by one where there is more to hold: operands twice, or the taps that the pixels
# of a phase meet. Elsewhere tiles so small are for 4 bytes alone.
PER_WARP_SCATTERED = 256


def fitting(
    tiles: list[triton.Config],
    columns: int,
    depth: int,
    *,
    itemsize: int,
    narrow: bool,
    split: bool,
    phases: bool = False,
) -> list[triton.Config]:
    """Those that pad little and spill nothing: as wide as `columns`, between 16 and 128, and not far beyond `depth`.

    columns: channels of the product        depth: the length of its sum
    itemsize: bytes of an operand's element        narrow: whether loads of the images are an element wide
    split: whether fp32 products are made of three in TF32        phases: whether pixels differ in the taps they meet
    """
    wide, deep = (max(16, triton.next_power_of_2(size)) for size in (columns, depth))
    widths = {64, 128} if wide >= 128 else {min(wide, 64)}
    scattered = narrow and (split or phases)
    most = PER_WARP_FP32 if itemsize > 2 else PER_WARP if narrow else math.inf

    def per_warp(tile: triton.Config, *others: str) -> float:
        return tile.kwargs["ROWS"] * sum(tile.kwargs[name] for name in others) / tile.num_warps

    def fits(tile: triton.Config) -> bool:
        small = per_warp(tile, "DEPTH") <= PER_WARP_SCATTERED
        return (
            (small if scattered else itemsize > 2 or not small)
            and per_warp(tile, "COLUMNS", "DEPTH") <= most
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
    """For the autotuner: `fitting`, told what the arguments and constants with these names are.

    columns, depth: constants, those of depth to be multiplied        channels: a constant, of the images per group
    images: the argument {images}_ptr
    """

    def kept(tiles: list[triton.Config], named: dict[str, Any], **constants: Any) -> list[triton.Config]:
        known = {**named, **constants}
        itemsize = known[f"{images}_ptr"].element_size()
        return fitting(
            tiles,
            known[columns],
            math.prod(known[name] for name in depth),
            itemsize=itemsize,
            narrow=known[f"{images}_stride_channel"] != 1 or known[channels] % 16 != 0,
            split=itemsize == 4 and known["PRECISION"] == "tf32x3",
            phases="STEP_H" in known and known["STRIDE_H"] * known["STRIDE_W"] > 1,
        )

    return {"early_config_prune": kept}


def check_operands(x: Tensor, **others: tuple[Tensor | None, Sequence[int]]) -> None:
    """Raises ValueError for images that tensor cores do not multiply, and for others of another shape, kind or device.

    others: {name: (tensor, shape)}
    """
    if x.dtype not in DTYPES:
        raise ValueError(f"the Triton convolutions take fp32, bf16 or fp16, not {x.dtype}; other strategies take that")
    for name, (tensor, shape) in others.items():
        expect(name, tensor, shape, x.device, dense=False)


def launch(
    kernel: Any, grid: Callable[[dict[str, int]], tuple[int]], tile: triton.Config | None, **arguments: Any
) -> None:
    """Launch an autotuned kernel with a given tile, or with that of its tiles which was the fastest when first timed.

    The choice is kept on disk beside what Triton compiled, so that later runs make the same one. It is the first that
    fits under torch.use_deterministic_algorithms, as another may sum in another order, and in Triton's interpreter.
    """
    if tile is None and (torch.are_deterministic_algorithms_enabled() or knobs.runtime.interpret):
        tile = kernel.early_config_prune(kernel.configs, {}, **arguments)[0]
    if tile is None:
        kernel[grid](**arguments)
    else:
        kernel.fn[grid](**arguments, **tile.all_kwargs())
