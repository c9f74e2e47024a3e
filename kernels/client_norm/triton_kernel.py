"""Norm of every client's row, read once; the order of the additions is fixed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect, matrix
from ..triton_rows import LEAD, blocks_per_row, load, row_block


@triton.jit
def _squares(
    rows_ptr,
    partial_ptr,
    n_params,
    parts,
    rows_stride_client,
    BLOCKS_PER_PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    client = program // parts
    begin = program % parts * BLOCKS_PER_PART
    lead = client * rows_stride_client % LEAD
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64 if rows_ptr.dtype.element_ty == tl.float64 else tl.float32)
    for block in range(BLOCKS_PER_PART):
        first = (begin + block) * BLOCK - lead
        pointers = rows_ptr + row_block(client, rows_stride_client, first, True) + offsets
        if (first >= 0) & (first + BLOCK <= n_params):
            values = tl.load(pointers).to(total.dtype)
            total += values * values
        else:
            columns = first + offsets
            values = load(pointers, (columns >= 0) & (columns < n_params)).to(total.dtype)
            total += values * values
    tl.store(partial_ptr + program, tl.sum(total, axis=0))


@torch.no_grad()
def client_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every row; as the reference.

    Raises ValueError if the elements of a row [clients, n_params] are not contiguous.
    """
    clients, n_params = matrix("rows", rows)
    expect("rows", rows, rows.shape, rows.device)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if rows.numel() == 0:
        return torch.zeros(clients, dtype=dtype, device=rows.device)
    block, num_warps = (2048, 4) if n_params > 256 else (256, 1)
    blocks = blocks_per_row(n_params, block)
    blocks_per_part = min(blocks, 4)
    parts = triton.cdiv(blocks, blocks_per_part)
    partial = torch.empty(clients, parts, dtype=dtype, device=rows.device)
    _squares[(clients * parts,)](
        rows_ptr=rows,
        partial_ptr=partial,
        n_params=n_params,
        parts=parts,
        rows_stride_client=rows.stride(0),
        BLOCKS_PER_PART=blocks_per_part,
        BLOCK=block,
        num_warps=num_warps,
    )
    return partial.sum(dim=-1).sqrt_()
