"""The update of a block of elements, for kernels that step clients."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_rows import load


@triton.jit
def correct(values, param, center_ptr, prox, drift_ptr, inside):
    """Return `values`, of the dtype of `param`, plus prox * (param - center) + drift.

    center_ptr and drift_ptr address the block and may be None; prox is a number.
    """
    if center_ptr is not None:
        values += prox * (param - load(center_ptr, inside).to(param.dtype))
    if drift_ptr is not None:
        values += load(drift_ptr, inside).to(param.dtype)
    return values


@triton.jit
def sgd_block(
    params_ptr,
    momentum_ptr,
    grads_ptr,
    shadow_ptr,
    rate,
    scale,
    decay,
    active,
    inside,
    mu,
    NESTEROV: tl.constexpr,
    center_ptr=None,
    prox=None,
    drift_ptr=None,
    LATE: tl.constexpr = False,
):
    """Step a block of elements, and return the new parameters in the dtype of `rate`.

    All pointers address the block. All but params_ptr and grads_ptr may be None, and scale, decay, active and prox;
    rate, scale, decay and active are broadcastable to the pointers, and mu is a constant or a number in the dtype of
    `rate`.

    Args:
        active: False leaves elements unchanged.
        inside: Mask, or None if all elements are inside.
        LATE: Whether prox and drift act after momentum.
    """
    param = load(params_ptr, inside).to(rate.dtype)
    grad = load(grads_ptr, inside).to(rate.dtype)
    if scale is not None:
        grad *= scale
    if decay is not None:
        grad += decay * param
    if not LATE:
        grad = correct(grad, param, center_ptr, prox, drift_ptr, inside)
    update = grad
    if momentum_ptr is not None:
        before = load(momentum_ptr, inside).to(rate.dtype)
        velocity = mu * before + grad
        momentum = velocity
        if active is not None:
            momentum = tl.where(active, velocity, before)
        tl.store(momentum_ptr, momentum, mask=inside)
        if NESTEROV:
            update = grad + mu * velocity
        else:
            update = velocity
    if LATE:
        update = correct(update, param, center_ptr, prox, drift_ptr, inside)
    stepped = param - rate * update
    if active is not None:
        stepped = tl.where(active, stepped, param)
    tl.store(params_ptr, stepped, mask=inside)
    if shadow_ptr is not None:
        tl.store(shadow_ptr, stepped, mask=inside)
    return stepped
