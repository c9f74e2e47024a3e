"""The tiles into which the Triton kernels cut their matrix products, for Triton's autotuner to choose from.

A program keeps ROWS x COLUMNS of a product [rows, depth] x [depth, columns] in registers and takes DEPTH of the sum at
each turn of its loop, with num_stages turns' loads under way at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton import knobs


def _tile(rows: int, columns: int, depth: int, warps: int, stages: int) -> triton.Config:
    sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


# Rows are pixels and columns channels. A program takes all channels where it can, so that the images are read once.
PIXELS_BY_CHANNELS = [
    _tile(128, 16, 16, 4, 4),
    _tile(128, 16, 32, 4, 3),
    _tile(128, 16, 64, 4, 3),
    _tile(256, 16, 16, 8, 4),
    _tile(64, 16, 32, 4, 4),
    _tile(128, 32, 32, 4, 3),
    _tile(128, 32, 16, 4, 4),
    _tile(128, 32, 64, 4, 3),
    _tile(256, 32, 32, 8, 3),
    _tile(128, 64, 64, 4, 3),
    _tile(128, 64, 32, 4, 3),
    _tile(64, 64, 64, 4, 3),
    _tile(256, 64, 32, 8, 3),
    _tile(128, 128, 64, 8, 3),
    _tile(128, 128, 32, 8, 3),
]

# Rows are taps and input channels, columns output channels; the sum runs over pixels.
TERMS_BY_CHANNELS = [
    _tile(64, 16, 64, 4, 3),
    _tile(128, 16, 64, 4, 3),
    _tile(64, 16, 128, 4, 2),
    _tile(64, 32, 64, 4, 3),
    _tile(128, 32, 64, 4, 3),
    _tile(64, 64, 64, 4, 3),
    _tile(64, 64, 32, 4, 4),
    _tile(128, 64, 32, 4, 3),
    _tile(128, 64, 64, 8, 3),
]


def fitting(tiles: list[triton.Config], columns: int, depth: int) -> list[triton.Config]:
    """Those that pad little: of the widest that `columns` fills, up to 64 or 128, and no deeper than `depth`.

    columns: channels of the product        depth: the length of its sum
    """
    wide, deep = (max(16, 1 << (size - 1).bit_length()) for size in (columns, depth))
    widths = {64, 128} if wide >= 128 else {min(wide, 64)}
    kept = [tile for tile in tiles if tile.kwargs["COLUMNS"] in widths]
    return [tile for tile in kept if tile.kwargs["DEPTH"] <= deep] or [min(kept, key=lambda tile: tile.kwargs["DEPTH"])]


def prune(columns: str, *depth: str) -> dict[str, Callable[..., list[triton.Config]]]:
    """For the autotuner: `fitting`, where the kernel's constants with these names multiply to columns and depth.

    In the interpreter nothing can be timed, and one tile is left.
    """

    def kept(tiles: list[triton.Config], named: dict[str, Any], **constants: Any) -> list[triton.Config]:
        known, length = {**named, **constants}, 1
        for name in depth:
            length *= known[name]
        fit = fitting(tiles, known[columns], length)
        return fit[:1] if knobs.runtime.interpret else fit

    return {"early_config_prune": kept}


def launchable(
    kernel: Any, tile: triton.Config | None, tiles: list[triton.Config], columns: int, depth: int
) -> tuple[Any, dict[str, Any]]:
    """What to launch, and its further arguments: the autotuned kernel, or the bare one with a given tile.

    Under torch.use_deterministic_algorithms the tile is the first that fits, as another may sum in another order.
    """
    if tile is None and torch.are_deterministic_algorithms_enabled():
        tile = fitting(tiles, columns, depth)[0]
    return (kernel, {}) if tile is None else (kernel.fn, tile.all_kwargs())
