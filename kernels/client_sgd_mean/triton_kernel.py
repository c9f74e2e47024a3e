"""Last local step of every client and the sum of the new parameters, so that the mean reads no buffer again."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect
from ..client_sgd.triton_block import sgd_block
from ..client_sgd.triton_kernel import check_step
from ..triton_rows import alignment, both, load, row_starts, tile


@triton.jit
def _step_of_columns(
    params_ptr,
    momentum_ptr,
    grads_ptr,
    learning_rate_ptr,
    decay_mask_ptr,
    grad_scale_ptr,
    active_ptr,
    total_ptr,
    weight_ptr,
    inside,
    clients,
    params_stride_client,
    momentum_stride_client,
    grads_stride_client,
    learning_rate_stride,
    grad_scale_stride,
    active_stride,
    weight_stride,
    MU: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    GRADS_ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    compute: tl.constexpr = tl.float64 if params_ptr.dtype.scalar.element_ty == tl.float64 else tl.float32
    decay = None
    if WEIGHT_DECAY != 0:
        decay = WEIGHT_DECAY * load(decay_mask_ptr, inside).to(compute)[None, :]
    # in total's wider dtype: 1/clients rounded to float32 would scale the mean in every round
    accumulator: tl.constexpr = tl.float64 if total_ptr.dtype.scalar.element_ty == tl.float64 else compute
    partial = tl.zeros((ROWS, BLOCK), accumulator)
    for begin in range(0, clients, ROWS):
        client = begin + tl.arange(0, ROWS).to(tl.int64)
        exists = client < clients
        rate = tl.load(learning_rate_ptr + client * learning_rate_stride, mask=exists, other=0.0).to(compute)
        weight = tl.load(weight_ptr + client * weight_stride, mask=exists, other=0.0).to(accumulator)
        scale = None
        if grad_scale_ptr is not None:
            scale = tl.load(grad_scale_ptr + client * grad_scale_stride, mask=exists, other=0.0).to(compute)[:, None]
        active = None
        if active_ptr is not None:
            active = (tl.load(active_ptr + client * active_stride, mask=exists, other=0) != 0)[:, None]
        rows = row_starts(client, params_stride_client, ALIGNMENT)[:, None]
        momenta = None
        if momentum_ptr is not None:
            momenta = momentum_ptr[None, :] + row_starts(client, momentum_stride_client, ALIGNMENT)[:, None]
        grads = grads_ptr[None, :] + row_starts(client, grads_stride_client, GRADS_ALIGNMENT)[:, None]
        stepped = sgd_block(
            params_ptr[None, :] + rows,
            momenta,
            grads,
            None,
            rate[:, None],
            scale,
            decay,
            active,
            both(exists, inside),
            MU,
            NESTEROV,
        )
        partial += weight[:, None] * stepped.to(accumulator)
    total = load(total_ptr, inside)
    tl.store(total_ptr, total + tl.sum(partial, axis=0).to(total.dtype), mask=inside)


@triton.jit
def _client_sgd_mean(
    params_ptr,
    momentum_ptr,
    grads_ptr,
    learning_rate_ptr,
    decay_mask_ptr,
    grad_scale_ptr,
    active_ptr,
    total_ptr,
    weight_ptr,
    clients,
    n_params,
    params_stride_client,
    momentum_stride_client,
    grads_stride_client,
    learning_rate_stride,
    grad_scale_stride,
    active_stride,
    weight_stride,
    MU: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    GRADS_ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    columns = first + tl.arange(0, BLOCK)
    inside = columns < n_params
    params_ptr += columns
    grads_ptr += columns
    if momentum_ptr is not None:
        momentum_ptr += columns
    # a mask of the columns would make every access one element wide
    if first + BLOCK <= n_params:
        _step_of_columns(
            params_ptr,
            momentum_ptr,
            grads_ptr,
            learning_rate_ptr,
            decay_mask_ptr + columns,
            grad_scale_ptr,
            active_ptr,
            total_ptr + columns,
            weight_ptr,
            None,
            clients,
            params_stride_client,
            momentum_stride_client,
            grads_stride_client,
            learning_rate_stride,
            grad_scale_stride,
            active_stride,
            weight_stride,
            MU,
            WEIGHT_DECAY,
            NESTEROV,
            ALIGNMENT,
            GRADS_ALIGNMENT,
            ROWS,
            BLOCK,
        )
    else:
        _step_of_columns(
            params_ptr,
            momentum_ptr,
            grads_ptr,
            learning_rate_ptr,
            decay_mask_ptr + columns,
            grad_scale_ptr,
            active_ptr,
            total_ptr + columns,
            weight_ptr,
            inside,
            clients,
            params_stride_client,
            momentum_stride_client,
            grads_stride_client,
            learning_rate_stride,
            grad_scale_stride,
            active_stride,
            weight_stride,
            MU,
            WEIGHT_DECAY,
            NESTEROV,
            ALIGNMENT,
            GRADS_ALIGNMENT,
            ROWS,
            BLOCK,
        )


@torch.no_grad()
def client_sgd_mean(
    params: Tensor,
    momentum: Tensor | None,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    total: Tensor,
    weight: float | Tensor,
    *,
    mu: float,
    weight_decay: float,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    active: Tensor | None = None,
) -> None:
    """Take one SGD step for every client, and add the weighted sum to a running mean, in place; as the reference.

    Sums in float64 if params or `total` are, else in float32. Loads are 16 bytes wide if the rows' strides are
    multiples of 16 bytes. Raises ValueError for a tensor of another shape, dtype or memory layout.
    """
    clients, n_params = check_step(params, momentum, grads, learning_rate, decay_mask, grad_scale, active)
    expect("total", total, (n_params,), params.device)
    if isinstance(weight, Tensor):
        expect("weight", weight, (clients,), params.device, dense=False)
    if params.numel() == 0:
        return
    if not isinstance(weight, Tensor):
        weight = torch.full((), weight, dtype=torch.float64, device=params.device).expand(clients)
    rows, block = tile(n_params)
    _client_sgd_mean[(triton.cdiv(n_params, block),)](
        params_ptr=params,
        momentum_ptr=momentum,
        grads_ptr=grads,
        learning_rate_ptr=learning_rate,
        decay_mask_ptr=decay_mask,
        grad_scale_ptr=grad_scale,
        active_ptr=active,
        total_ptr=total,
        weight_ptr=weight,
        clients=clients,
        n_params=n_params,
        params_stride_client=params.stride(0),
        momentum_stride_client=0 if momentum is None else momentum.stride(0),
        grads_stride_client=grads.stride(0),
        learning_rate_stride=learning_rate.stride(0),
        grad_scale_stride=0 if grad_scale is None else grad_scale.stride(0),
        active_stride=0 if active is None else active.stride(0),
        weight_stride=weight.stride(0),
        MU=mu,
        WEIGHT_DECAY=weight_decay,
        NESTEROV=nesterov,
        ALIGNMENT=alignment(params, momentum),
        GRADS_ALIGNMENT=alignment(grads),
        ROWS=rows,
        BLOCK=block,
        num_warps=4,
    )
