"""Fused AdamW step of every client in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..client_sgd.reference import correction_of


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
    """Take one AdamW step (Loshchilov and Hutter 2019) for every client, in place.

        t <- t + 1
        g <- grad_scale * g + prox * (p - center[group]) + drift
        p <- p - learning_rate * weight_decay * decay_mask * p
        m <- m + (1 - beta1) * (g - m)
        v <- beta2 * v + (1 - beta2) * g^2
        p <- p - learning_rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    The order of operations is that of torch.optim.AdamW. Each client corrects the bias of its means by its own number
    of steps t. The factors of the bias are computed in float64: 1 - beta2^t of a first step is 0.001.

    Args:
        params: [clients, n_params], rows contiguous.
        momentum: [clients, n_params], the means m of gradients.
        square: [clients, n_params], the means v of their squares.
        steps: float64 [clients], the numbers t of steps; not necessarily whole.
        grads: [clients, n_params]; may be overwritten.
        learning_rate: [clients].
        decay_mask: [n_params], 1 where weight decay applies.
        beta1: Decay of m.
        beta2: Decay of v.
        eps: Added to the root of v.
        weight_decay: Factor of the decoupled decay, a number or floating [clients].
        grad_scale: [clients], or None for 1.
        active: bool [clients], or None; rows of inactive clients keep every bit, and their number of steps.
        shadow: [clients, n_params] of a narrower dtype that becomes a copy of params, or None.
        center: [n_params] or [groups, n_params], to which prox pulls; or None.
        group: int32 [clients], rows of `center`; None: the only one.
        prox: [clients], or None for 0.
        drift: [clients, n_params], or None for 0.
    """
    changed = [buffer for buffer in (params, momentum, square, shadow) if buffer is not None]
    if active is not None:
        # no rows are picked: a GPU would wait for their number, which no captured step may
        before = [buffer.clone() for buffer in changed]
    steps.add_(1 if active is None else active)
    grads = grads.to(params.dtype)
    if grad_scale is not None:
        grads.mul_(grad_scale.to(grads.dtype).unsqueeze(-1))
    correction = correction_of(params, center, group, prox, drift)
    if correction is not None:
        grads = correction.add_(grads)
    rates = learning_rate.double()
    if isinstance(weight_decay, Tensor) or weight_decay:
        factors = (rates * weight_decay).to(params.dtype).unsqueeze(-1)
        params.addcmul_(params * factors, decay_mask, value=-1)
    momentum.lerp_(grads, 1 - beta1)
    square.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    root = (1 - beta2**steps).sqrt_().to(params.dtype).unsqueeze(-1)
    denominator = square.sqrt().div_(root).add_(eps)
    update = torch.div(momentum, denominator, out=denominator)
    params.addcmul_(update, (rates / (1 - beta1**steps)).to(params.dtype).unsqueeze(-1), value=-1)
    if shadow is not None:
        shadow.copy_(params)
    if active is not None:
        for buffer, rows in zip(changed, before, strict=True):
            buffer.copy_(torch.where(active.unsqueeze(-1), buffer, rows))
