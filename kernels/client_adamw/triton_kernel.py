"""Fused AdamW step of every client: each buffer is read once and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import check_correction, expect, matrix, per_client
from ..client_sgd.triton_block import correct
from ..triton_rows import LEAD, blocks_per_row, congruent, load, row_block
from .triton_factors import count_steps


@triton.jit
def _adamw_block(
    params_ptr,
    momentum_ptr,
    square_ptr,
    grads_ptr,
    shadow_ptr,
    decay_mask_ptr,
    rate,
    unbias,
    decay,
    scale,
    inside,
    center_ptr,
    prox,
    drift_ptr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
):
    """Step a block of elements; all pointers address it, and those that may be None are left out."""
    compute: tl.constexpr = rate.dtype
    param = load(params_ptr, inside).to(compute)
    grad = load(grads_ptr, inside).to(compute)
    if scale is not None:
        grad *= scale
    grad = correct(grad, param, center_ptr, prox, drift_ptr, inside)
    if decay_mask_ptr is not None:
        param -= decay * load(decay_mask_ptr, inside).to(compute) * param
    momentum = load(momentum_ptr, inside).to(compute)
    momentum += (1.0 - BETA1) * (grad - momentum)
    tl.store(momentum_ptr, momentum, mask=inside)
    square = BETA2 * load(square_ptr, inside).to(compute) + (1.0 - BETA2) * grad * grad
    tl.store(square_ptr, square, mask=inside)
    param -= rate * momentum / (tl.sqrt(square) * unbias + EPS)
    tl.store(params_ptr, param, mask=inside)
    if shadow_ptr is not None:
        tl.store(shadow_ptr, param, mask=inside)


@triton.jit
def _client_adamw(
    params_ptr,
    momentum_ptr,
    square_ptr,
    grads_ptr,
    shadow_ptr,
    factors_ptr,
    decay_mask_ptr,
    grad_scale_ptr,
    active_ptr,
    center_ptr,
    group_ptr,
    prox_ptr,
    drift_ptr,
    clients,
    n_params,
    blocks_per_client,
    params_stride_client,
    momentum_stride_client,
    square_stride_client,
    grads_stride_client,
    shadow_stride_client,
    grad_scale_stride,
    active_stride,
    center_stride_group,
    drift_stride_client,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    CONGRUENT: tl.constexpr,
    GRADS_CONGRUENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    client = program // blocks_per_client
    if active_ptr is not None:
        if tl.load(active_ptr + client * active_stride) == 0:
            return
    compute: tl.constexpr = tl.float64 if params_ptr.dtype.element_ty == tl.float64 else tl.float32
    rate = tl.load(factors_ptr + client).to(compute)
    unbias = tl.load(factors_ptr + clients + client).to(compute)
    decay = tl.load(factors_ptr + 2 * clients + client).to(compute)
    scale = None
    if grad_scale_ptr is not None:
        scale = tl.load(grad_scale_ptr + client * grad_scale_stride).to(compute)
    first = program % blocks_per_client * BLOCK - client * params_stride_client % LEAD
    offsets = tl.arange(0, BLOCK)
    columns = first + offsets
    params_ptr += row_block(client, params_stride_client, first, CONGRUENT) + offsets
    momentum_ptr += row_block(client, momentum_stride_client, first, CONGRUENT) + offsets
    square_ptr += row_block(client, square_stride_client, first, CONGRUENT) + offsets
    grads_ptr += row_block(client, grads_stride_client, first, GRADS_CONGRUENT) + offsets
    if shadow_ptr is not None:
        shadow_ptr += row_block(client, shadow_stride_client, first, CONGRUENT) + offsets
    prox = None
    if prox_ptr is not None:
        prox = tl.load(prox_ptr + client).to(compute)
        group = client * 0
        if group_ptr is not None:
            group += tl.load(group_ptr + client)
        center_ptr += row_block(group, center_stride_group, first, False) + offsets
    else:
        center_ptr = None
    if drift_ptr is not None:
        drift_ptr += row_block(client, drift_stride_client, first, CONGRUENT) + offsets
    if decay_mask_ptr is not None:
        decay_mask_ptr += columns
    if (first >= 0) & (first + BLOCK <= n_params):
        _adamw_block(
            params_ptr,
            momentum_ptr,
            square_ptr,
            grads_ptr,
            shadow_ptr,
            decay_mask_ptr,
            rate,
            unbias,
            decay,
            scale,
            None,
            center_ptr,
            prox,
            drift_ptr,
            BETA1,
            BETA2,
            EPS,
        )
    else:
        inside = (columns >= 0) & (columns < n_params)
        _adamw_block(
            params_ptr,
            momentum_ptr,
            square_ptr,
            grads_ptr,
            shadow_ptr,
            decay_mask_ptr,
            rate,
            unbias,
            decay,
            scale,
            inside,
            center_ptr,
            prox,
            drift_ptr,
            BETA1,
            BETA2,
            EPS,
        )


@torch.no_grad()
def client_adamw(
    params: Tensor,
    momentum: Tensor,
    square: Tensor,
    steps: Tensor,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: Tensor | float,
    grad_scale: Tensor | None = None,
    active: Tensor | None = None,
    shadow: Tensor | None = None,
    center: Tensor | None = None,
    group: Tensor | None = None,
    prox: Tensor | None = None,
    drift: Tensor | None = None,
) -> None:
    """Take one AdamW step for every client, in place; as the reference, but grads are not changed.

    Rows may have any stride; their elements are contiguous. The betas, eps and `weight_decay` as a number are constants
    of the compiled kernel. Raises ValueError for a tensor of another shape, dtype or memory layout.
    """
    clients, n_params = rows = matrix("params", params)
    device, dtype = params.device, params.dtype
    expect("params", params, rows, device, disjoint_rows=True)
    expect("momentum", momentum, rows, device, dtype, disjoint_rows=True)
    expect("square", square, rows, device, dtype, disjoint_rows=True)
    expect("steps", steps, (clients,), device, torch.float64, dense=False)
    expect("grads", grads, rows, device)
    expect("learning_rate", learning_rate, (clients,), device, dense=False)
    expect("decay_mask", decay_mask, (n_params,), device)
    expect("grad_scale", grad_scale, (clients,), device, dense=False)
    expect("active", active, (clients,), device, torch.bool, dense=False)
    expect("shadow", shadow, rows, device, disjoint_rows=True)
    per_client("weight_decay", weight_decay, (clients,), device)
    centers = check_correction(params, center, group, prox, drift)
    if clients == 0:
        return
    factors = count_steps(steps, learning_rate, active, weight_decay, beta1, beta2)
    if n_params == 0:
        return
    block, num_warps = (1024, 4) if n_params > 1024 else (256, 2) if n_params > 128 else (128, 1)
    blocks = blocks_per_row(n_params, block)
    _client_adamw[(clients * blocks,)](
        params_ptr=params,
        momentum_ptr=momentum,
        square_ptr=square,
        grads_ptr=grads,
        shadow_ptr=shadow,
        factors_ptr=factors,
        decay_mask_ptr=decay_mask if isinstance(weight_decay, Tensor) or weight_decay else None,
        grad_scale_ptr=grad_scale,
        active_ptr=active,
        center_ptr=centers,
        group_ptr=None if prox is None else group,
        prox_ptr=None if prox is None else prox.contiguous(),
        drift_ptr=drift,
        clients=clients,
        n_params=n_params,
        blocks_per_client=blocks,
        params_stride_client=params.stride(0),
        momentum_stride_client=momentum.stride(0),
        square_stride_client=square.stride(0),
        grads_stride_client=grads.stride(0),
        shadow_stride_client=0 if shadow is None else shadow.stride(0),
        grad_scale_stride=0 if grad_scale is None else grad_scale.stride(0),
        active_stride=0 if active is None else active.stride(0),
        center_stride_group=0 if centers is None else centers.stride(0),
        drift_stride_client=0 if drift is None else drift.stride(0),
        BETA1=beta1,
        BETA2=beta2,
        EPS=eps,
        CONGRUENT=congruent(params, momentum, square, shadow, drift),
        GRADS_CONGRUENT=congruent(params, grads),
        BLOCK=block,
        num_warps=num_warps,
    )
