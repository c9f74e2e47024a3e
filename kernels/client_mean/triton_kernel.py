"""Mean over the client axis: every row is read once, and written once with `broadcast`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect, matrix
from ..triton_rows import alignment, both, load, row_starts, tile


@triton.jit
def _mean_of_columns(
    params_ptr,
    total_ptr,
    weight_ptr,
    inside,
    clients,
    params_stride_client,
    weight_stride,
    BROADCAST: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    compute: tl.constexpr = tl.float64 if params_ptr.dtype.scalar.element_ty == tl.float64 else tl.float32
    # in total's wider dtype: 1/clients rounded to float32 would scale the mean in every round
    accumulator: tl.constexpr = tl.float64 if total_ptr.dtype.scalar.element_ty == tl.float64 else compute
    partial = tl.zeros((ROWS, BLOCK), accumulator)
    for begin in range(0, clients, ROWS):
        client = begin + tl.arange(0, ROWS).to(tl.int64)
        exists = client < clients
        weight = tl.load(weight_ptr + client * weight_stride, mask=exists, other=0.0).to(accumulator)
        rows = params_ptr[None, :] + row_starts(client, params_stride_client, ALIGNMENT)[:, None]
        partial += weight[:, None] * load(rows, both(exists, inside)).to(accumulator)
    total = load(total_ptr, inside)
    total += tl.sum(partial, axis=0).to(total.dtype)
    tl.store(total_ptr, total, mask=inside)
    if BROADCAST:
        for begin in range(0, clients, ROWS):
            client = begin + tl.arange(0, ROWS).to(tl.int64)
            rows = params_ptr[None, :] + row_starts(client, params_stride_client, ALIGNMENT)[:, None]
            values = tl.broadcast_to(total[None, :], (ROWS, BLOCK))
            tl.store(rows, values.to(compute), mask=both(client < clients, inside))


@triton.jit
def _client_mean(
    params_ptr,
    total_ptr,
    weight_ptr,
    clients,
    n_params,
    params_stride_client,
    weight_stride,
    BROADCAST: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_params
    if (tl.program_id(0).to(tl.int64) + 1) * BLOCK <= n_params:
        _mean_of_columns(
            params_ptr + columns,
            total_ptr + columns,
            weight_ptr,
            None,
            clients,
            params_stride_client,
            weight_stride,
            BROADCAST,
            ALIGNMENT,
            ROWS,
            BLOCK,
        )
    else:
        _mean_of_columns(
            params_ptr + columns,
            total_ptr + columns,
            weight_ptr,
            inside,
            clients,
            params_stride_client,
            weight_stride,
            BROADCAST,
            ALIGNMENT,
            ROWS,
            BLOCK,
        )


@torch.no_grad()
def client_mean(params: Tensor, total: Tensor, weight: float | Tensor, *, broadcast: bool = False) -> None:
    """Add the weighted sum of a chunk's rows to a running mean, in place; as the reference.

    Computes in float64 if the rows or `total` are, else in float32. Loads are 16 bytes wide if the rows' stride is a
    multiple of 16 bytes. Raises ValueError for a tensor of another shape, dtype or memory layout.
    """
    clients, n_params = matrix("params", params)
    expect("params", params, params.shape, params.device, disjoint_rows=broadcast)
    expect("total", total, (n_params,), params.device)
    if isinstance(weight, Tensor):
        expect("weight", weight, (clients,), params.device, dense=False)
    if params.numel() == 0:
        return
    if not isinstance(weight, Tensor):
        weight = torch.full((), weight, dtype=torch.float64, device=params.device).expand(clients)
    rows, block = tile(n_params)
    if params.dtype == torch.float64:  # else 16 bytes spill on sm_80, with Triton 3.8
        block //= 2
    _client_mean[(triton.cdiv(n_params, block),)](
        params_ptr=params,
        total_ptr=total,
        weight_ptr=weight,
        clients=clients,
        n_params=n_params,
        params_stride_client=params.stride(0),
        weight_stride=weight.stride(0),
        BROADCAST=broadcast,
        ALIGNMENT=alignment(params),
        ROWS=rows,
        BLOCK=block,
        num_warps=4,
    )
