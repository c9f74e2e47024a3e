"""client_mean in Triton, right and wrong in one way at a time: what the checker has to tell apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

FAULTS = (
    "missing mask",
    "mask off by one",
    "swapped stride",
    "race",
    "race of the broadcast",
    "stale broadcast",
    "forgotten block",
    "forgotten client",
    "narrow accumulator",
    "unwritten memory",
    "changed input",
)


@triton.jit
def _mean(
    params_ptr,
    total_ptr,
    sums_ptr,
    weight,
    clients,
    n_params,
    stride,
    BROADCAST: tl.constexpr,
    FAULT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_params
    if FAULT == "mask off by one":
        inside = columns < n_params - 1
    written = inside
    if FAULT == "missing mask":
        written = columns >= 0
    if FAULT == "swapped stride":
        stride = n_params
    first = 1 if FAULT == "forgotten client" else 0
    partial = tl.zeros((BLOCK,), tl.bfloat16 if FAULT == "narrow accumulator" else tl.float32)
    for client in range(first, clients):
        partial += tl.load(params_ptr + client * stride + columns, mask=inside, other=0.0).to(partial.dtype)
    if FAULT == "unwritten memory":
        partial += tl.load(sums_ptr + columns, mask=inside, other=0.0)
    before = tl.load(total_ptr + columns, mask=inside, other=0.0)
    total = before + weight * partial.to(before.dtype)
    tl.store(total_ptr + columns, total, mask=written)
    if BROADCAST:
        for client in range(clients):
            values = before if FAULT == "stale broadcast" else total
            if FAULT == "race of the broadcast":
                # what another program may not have written yet
                values = tl.load(total_ptr + (columns + BLOCK) % n_params, mask=inside, other=0.0)
            tl.store(params_ptr + client * stride + columns, values.to(tl.float32), mask=inside)
    if FAULT == "changed input":
        tl.store(params_ptr + columns, tl.zeros((BLOCK,), tl.float32), mask=inside)


@triton.jit
def _add_each_client(params_ptr, total_ptr, weight, n_params, stride, BLOCK: tl.constexpr):
    """A program for each client: all of them add to the same total, without atomics."""
    columns = tl.arange(0, BLOCK)
    inside = columns < n_params
    row = tl.load(params_ptr + tl.program_id(0).to(tl.int64) * stride + columns, mask=inside, other=0.0)
    before = tl.load(total_ptr + columns, mask=inside, other=0.0)
    tl.store(total_ptr + columns, before + weight * row, mask=inside)


def client_mean_with(fault: str | None) -> Callable[..., None]:
    """client_mean that is wrong in one of FAULTS, or right. The weight is a number."""

    def client_mean(params: Tensor, total: Tensor, weight: float, *, broadcast: bool = False) -> None:
        clients, n_params = params.shape
        if fault == "race":
            _add_each_client[(clients,)](
                params_ptr=params,
                total_ptr=total,
                weight=weight,
                n_params=n_params,
                stride=params.stride(0),
                BLOCK=triton.next_power_of_2(n_params),
            )
            return
        block = 64
        blocks = triton.cdiv(n_params, block)
        _mean[(blocks - 1 if fault == "forgotten block" else blocks,)](
            params_ptr=params,
            total_ptr=total,
            sums_ptr=torch.empty(n_params, device=params.device),
            weight=weight,
            clients=clients,
            n_params=n_params,
            stride=params.stride(0),
            BROADCAST=broadcast,
            FAULT=fault,
            BLOCK=block,
        )

    return client_mean
