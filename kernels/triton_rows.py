"""Blocks of rows for Triton kernels, placed so that loads and stores are 16 bytes wide.

Consecutive rows of n_params elements start anywhere, because n_params is any number. So a block starts `lead` elements
before its row, at a multiple of 16, and the first and the last block of a row are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LEAD = tl.constexpr(16)
"""Blocks start at multiples of this element count: 16 bytes of the narrowest dtype, as Triton's vectorization needs."""


@triton.jit
def row_block(row, stride, first, CONGRUENT: tl.constexpr):
    """Return the offset of column `first` of a row; a multiple of 16 if CONGRUENT.

    Args:
        row: int64.
        stride: int64, or promoted by `row`.
        first: First column of the block, negative before the row.
        CONGRUENT: Whether the row's start minus `first` is a multiple of 16.
    """
    offset = row * stride + first
    if CONGRUENT:
        offset = tl.multiple_of(offset, LEAD)
    return offset


@triton.jit
def load(pointers, inside):
    """Load elements, zero outside `inside`; None means all are inside.

    A mask that Triton cannot analyze makes loads one element wide.
    """
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def row_starts(rows, stride, ALIGNMENT: tl.constexpr):
    """Return the offsets of the rows [n] int64, known to be multiples of ALIGNMENT."""
    return tl.multiple_of(rows * stride, [ALIGNMENT])


@triton.jit
def both(rows, columns):
    """Return the mask [rows, columns] of a tile; columns None means all are inside."""
    if columns is None:
        return rows[:, None]
    else:
        return rows[:, None] & columns[None, :]


def congruent(*buffers: Tensor | None) -> bool:
    """Return True if the rows of all buffers [rows, columns] have the same stride modulo 16 elements."""
    strides = {buffer.stride(0) % LEAD.value for buffer in buffers if buffer is not None}
    return len(strides) <= 1


def blocks_per_row(columns: int, block: int) -> int:
    """Return the number of blocks that cover a row, wherever it starts."""
    return triton.cdiv(columns + LEAD.value - 1, block)


def alignment(*buffers: Tensor | None) -> int:
    """Return the largest power of two up to 16 that divides all row strides, in elements."""
    strides = [buffer.stride(0) for buffer in buffers if buffer is not None and buffer.shape[0] > 1]
    return next(power for power in (16, 8, 4, 2, 1) if all(stride % power == 0 for stride in strides))


def tile(columns: int) -> tuple[int, int]:
    """Return rows and columns of the tile in which a program walks down all rows; narrow for few columns."""
    return (2, 512) if columns >= 2**16 else (8, 128)
