"""Fused local update of every client: each buffer is read once and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import check_correction, expect, matrix, per_client
from ..triton_rows import LEAD, blocks_per_row, congruent, load, row_block
from .triton_block import sgd_block


@triton.jit
def _factor(factors_ptr, client, NUMBER: tl.constexpr, compute: tl.constexpr):
    """Return the client's factor of factors_ptr, or NUMBER if factors_ptr is None, in the dtype `compute`."""
    if factors_ptr is None:
        return tl.full((), NUMBER, compute)
    else:
        return tl.load(factors_ptr + client).to(compute)


@triton.jit
def _decayed_block(
    params_ptr,
    momentum_ptr,
    grads_ptr,
    shadow_ptr,
    decay_mask_ptr,
    rate,
    scale,
    inside,
    mu,
    weight_decay,
    NESTEROV: tl.constexpr,
    center_ptr,
    prox,
    drift_ptr,
    LATE: tl.constexpr,
):
    decay = None
    if decay_mask_ptr is not None:
        decay = weight_decay * load(decay_mask_ptr, inside).to(rate.dtype)
    sgd_block(
        params_ptr,
        momentum_ptr,
        grads_ptr,
        shadow_ptr,
        rate,
        scale,
        decay,
        None,
        inside,
        mu,
        NESTEROV,
        center_ptr,
        prox,
        drift_ptr,
        LATE,
    )


@triton.jit
def _client_sgd(
    params_ptr,
    momentum_ptr,
    grads_ptr,
    shadow_ptr,
    learning_rate_ptr,
    decay_mask_ptr,
    grad_scale_ptr,
    active_ptr,
    mu_ptr,
    weight_decay_ptr,
    center_ptr,
    group_ptr,
    prox_ptr,
    drift_ptr,
    n_params,
    blocks_per_client,
    params_stride_client,
    momentum_stride_client,
    grads_stride_client,
    shadow_stride_client,
    learning_rate_stride,
    grad_scale_stride,
    active_stride,
    center_stride_group,
    drift_stride_client,
    MU: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
    LATE: tl.constexpr,
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
    rate = tl.load(learning_rate_ptr + client * learning_rate_stride).to(compute)
    scale = None
    if grad_scale_ptr is not None:
        scale = tl.load(grad_scale_ptr + client * grad_scale_stride).to(compute)
    mu = _factor(mu_ptr, client, MU, compute)
    weight_decay = _factor(weight_decay_ptr, client, WEIGHT_DECAY, compute)
    first = program % blocks_per_client * BLOCK - client * params_stride_client % LEAD
    offsets = tl.arange(0, BLOCK)
    columns = first + offsets
    params_ptr += row_block(client, params_stride_client, first, CONGRUENT) + offsets
    grads_ptr += row_block(client, grads_stride_client, first, GRADS_CONGRUENT) + offsets
    if momentum_ptr is not None:
        momentum_ptr += row_block(client, momentum_stride_client, first, CONGRUENT) + offsets
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
    if weight_decay_ptr is not None or WEIGHT_DECAY != 0:
        decay_mask_ptr += columns
    else:
        decay_mask_ptr = None
    if (first >= 0) & (first + BLOCK <= n_params):
        _decayed_block(
            params_ptr,
            momentum_ptr,
            grads_ptr,
            shadow_ptr,
            decay_mask_ptr,
            rate,
            scale,
            None,
            mu,
            weight_decay,
            NESTEROV,
            center_ptr,
            prox,
            drift_ptr,
            LATE,
        )
    else:
        inside = (columns >= 0) & (columns < n_params)
        _decayed_block(
            params_ptr,
            momentum_ptr,
            grads_ptr,
            shadow_ptr,
            decay_mask_ptr,
            rate,
            scale,
            inside,
            mu,
            weight_decay,
            NESTEROV,
            center_ptr,
            prox,
            drift_ptr,
            LATE,
        )


def check_step(
    params: Tensor,
    momentum: Tensor | None,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    grad_scale: Tensor | None,
    active: Tensor | None,
) -> tuple[int, int]:
    """Return (clients, n_params); raises ValueError if the arguments of a step do not fit each other."""
    clients, n_params = rows = matrix("params", params)
    device, dtype = params.device, params.dtype
    expect("params", params, rows, device, disjoint_rows=True)
    expect("momentum", momentum, rows, device, dtype, disjoint_rows=True)
    expect("grads", grads, rows, device)
    expect("learning_rate", learning_rate, (clients,), device, dense=False)
    expect("decay_mask", decay_mask, (n_params,), device)
    expect("grad_scale", grad_scale, (clients,), device, dense=False)
    expect("active", active, (clients,), device, torch.bool, dense=False)
    return clients, n_params


@torch.no_grad()
def client_sgd(
    params: Tensor,
    momentum: Tensor | None,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    *,
    mu: Tensor | float,
    weight_decay: Tensor | float,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    active: Tensor | None = None,
    shadow: Tensor | None = None,
    center: Tensor | None = None,
    group: Tensor | None = None,
    prox: Tensor | None = None,
    drift: Tensor | None = None,
    late: bool = False,
) -> None:
    """Take one SGD step for every client, in place; as the reference, but grads are not changed.

    Rows may have any stride; their elements are contiguous. `mu` and `weight_decay` as numbers are constants of the
    compiled kernel, one pair per run; as tensors they are cast to fp32, or fp64 for fp64 params. Raises ValueError for
    a tensor of another shape, dtype or memory layout.
    """
    clients, n_params = check_step(params, momentum, grads, learning_rate, decay_mask, grad_scale, active)
    momenta = per_client("mu", mu, (clients,), params.device)
    decays = per_client("weight_decay", weight_decay, (clients,), params.device)
    expect("shadow", shadow, params.shape, params.device, disjoint_rows=True)
    centers = check_correction(params, center, group, prox, drift)
    if params.numel() == 0:
        return
    block, num_warps = (1024, 4) if n_params > 1024 else (256, 2) if n_params > 128 else (128, 1)
    blocks = blocks_per_row(n_params, block)
    _client_sgd[(clients * blocks,)](
        params_ptr=params,
        momentum_ptr=momentum,
        grads_ptr=grads,
        shadow_ptr=shadow,
        learning_rate_ptr=learning_rate,
        decay_mask_ptr=decay_mask,
        grad_scale_ptr=grad_scale,
        active_ptr=active,
        mu_ptr=momenta,
        weight_decay_ptr=decays,
        center_ptr=centers,
        group_ptr=None if prox is None else group,
        prox_ptr=None if prox is None else prox.contiguous(),
        drift_ptr=drift,
        n_params=n_params,
        blocks_per_client=blocks,
        params_stride_client=params.stride(0),
        momentum_stride_client=0 if momentum is None else momentum.stride(0),
        grads_stride_client=grads.stride(0),
        shadow_stride_client=0 if shadow is None else shadow.stride(0),
        learning_rate_stride=learning_rate.stride(0),
        grad_scale_stride=0 if grad_scale is None else grad_scale.stride(0),
        active_stride=0 if active is None else active.stride(0),
        center_stride_group=0 if centers is None else centers.stride(0),
        drift_stride_client=0 if drift is None else drift.stride(0),
        MU=0.0 if isinstance(mu, Tensor) else mu,
        WEIGHT_DECAY=0.0 if isinstance(weight_decay, Tensor) else weight_decay,
        NESTEROV=nesterov,
        LATE=late,
        CONGRUENT=congruent(params, momentum, shadow, drift),
        GRADS_CONGRUENT=congruent(params, grads),
        BLOCK=block,
        num_warps=num_warps,
    )
