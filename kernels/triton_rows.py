"""Blocks of rows for Triton kernels, placed so that loads and stores are 16 bytes wide.

Rows of n_params elements that lie one after the other start anywhere, as n_params is any number. So a block starts
`lead` elements before the row does, at a multiple of 16, and the first and the last block of a row are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LEAD = tl.constexpr(16)
"""Blocks start at multiples of so many elements: 16 bytes of the narrowest dtype, and what Triton looks for."""


@triton.jit
def row_block(row, stride, first, CONGRUENT: tl.constexpr):
    """Offset of column `first` of a row; a multiple of 16 where the row's own start minus `first` is one.

    row, stride: int64, or promoted to it by `row`        first: the block's first column, negative before the row
    """
    offset = row * stride + first
    if CONGRUENT:
        offset = tl.multiple_of(offset, LEAD)
    return offset


@triton.jit
def load(pointers, inside):
    """The elements, zero where not inside; `inside` None where all are. A mask that Triton cannot see through makes
    loads one element wide."""
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def row_starts(rows, stride, ALIGNMENT: tl.constexpr):
    """Offsets of the first columns of some rows, which are known to be multiples of ALIGNMENT.

    rows: int64 [n]
    """
    return tl.multiple_of(rows * stride, [ALIGNMENT])


@triton.jit
def both(rows, columns):
    """The mask [rows, columns] of a tile; columns None where all are inside."""
    if columns is None:
        return rows[:, None]
    else:
        return rows[:, None] & columns[None, :]


def congruent(*buffers: Tensor | None) -> bool:
    """Whether in all of these [rows, columns] the same columns of a row start at the same place modulo 16 elements."""
    strides = {buffer.stride(0) % LEAD.value for buffer in buffers if buffer is not None}
    return len(strides) <= 1


def blocks_per_row(columns: int, block: int) -> int:
    """How many blocks cover a row wherever it starts."""
    return triton.cdiv(columns + LEAD.value - 1, block)


def alignment(*buffers: Tensor | None) -> int:
    """The largest power of two up to 16 that divides the stride of every row, in elements."""
    strides = [buffer.stride(0) for buffer in buffers if buffer is not None and buffer.shape[0] > 1]
    return next(power for power in (16, 8, 4, 2, 1) if all(stride % power == 0 for stride in strides))


def tile(columns: int) -> tuple[int, int]:
    """Rows and columns of the tile in which one program goes down all rows: narrow where there are few columns."""
    return (2, 512) if columns >= 2**16 else (8, 128)
