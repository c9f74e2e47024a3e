"""Fused local update of every client in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Take one SGD step for every client, in place.

        c <- prox * (p - center[group]) + drift
        g <- grad_scale * g + weight_decay * decay_mask * p + (0  if late else  c)
        m <- mu * m + g
        p <- p - learning_rate * ((g + mu * m  if nesterov else  m) + (c  if late else  0))

    The rate stays outside the buffer, as in torch.optim.SGD(dampening=0) and unlike Sutskever et al. 2013.

    A factor for each client is cast to the dtype of params. In fp32 and fp64 a row's bits on a CPU are then those of a
    call with its factor as a number, if the tensor holds that number: float64 always does.

    Args:
        params: [clients, n_params], rows contiguous.
        momentum: [clients, n_params], or None if mu is the number 0.
        grads: [clients, n_params]; may be overwritten.
        learning_rate: [clients].
        decay_mask: [n_params], 1 where weight decay applies.
        mu: Momentum factor, a number or floating [clients].
        weight_decay: Factor of the decay, a number or floating [clients].
        nesterov: Nesterov momentum.
        grad_scale: [clients], or None for 1.
        active: bool [clients], or None; rows of inactive clients keep every bit.
        shadow: [clients, n_params] of a narrower dtype that becomes a copy of params, or None.
        center: [n_params] or [groups, n_params], to which prox pulls; or None.
        group: int32 [clients], rows of `center`; None: the only one.
        prox: [clients], or None for 0.
        drift: [clients, n_params], or None for 0.
        late: Whether c acts after momentum, which then does not hold it.
    """
    correction = correction_of(params, center, group, prox, drift)
    if active is not None:
        # no rows are picked: a GPU would wait for their number, which no captured step may
        before = [None if buffer is None else buffer.clone() for buffer in (params, momentum, shadow)]
    if grad_scale is not None:
        grads.mul_(grad_scale.to(grads.dtype).unsqueeze(-1))
    if isinstance(weight_decay, Tensor):
        factors = weight_decay.to(params.dtype).unsqueeze(-1)
        # without decay the sum with -0.0 keeps the gradient's bits
        decayed = (params * factors).masked_fill_(factors == 0, -0.0)
        grads.addcmul_(decayed, decay_mask)
    elif weight_decay:
        grads.addcmul_(params, decay_mask, value=weight_decay)
    if correction is not None and not late:
        grads.add_(correction)
    update = grads
    if momentum is not None:
        if isinstance(mu, Tensor):
            factors = mu.to(params.dtype).unsqueeze(-1)
            momentum.mul_(factors).add_(grads)
            update = grads.addcmul_(momentum, factors) if nesterov else momentum
        else:
            momentum.mul_(mu).add_(grads)
            update = grads.add_(momentum, alpha=mu) if nesterov else momentum
    if correction is not None and late:
        update = correction.add_(update)
    params.addcmul_(update, learning_rate.to(params.dtype).unsqueeze(-1), value=-1)
    if shadow is not None:
        shadow.copy_(params)
    if active is not None:
        for buffer, rows in zip((params, momentum, shadow), before, strict=True):
            if buffer is not None and rows is not None:
                buffer.copy_(torch.where(active.unsqueeze(-1), buffer, rows))


def correction_of(
    params: Tensor, center: Tensor | None, group: Tensor | None, prox: Tensor | None, drift: Tensor | None
) -> Tensor | None:
    """Return prox * (params - center[group]) + drift [clients, n_params], new; None without prox and drift."""
    if prox is None:
        return None if drift is None else drift.to(params.dtype, copy=True)
    if center is None:
        raise ValueError("prox needs the center to which it pulls")
    centers = center if group is None else center[group.long()]
    correction = (params - centers).mul_(prox.to(params.dtype).unsqueeze(-1))
    return correction if drift is None else correction.add_(drift)
