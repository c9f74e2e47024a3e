"""The fused local update of every client, in plain torch; also the CPU path."""

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
    mu: float,
    weight_decay: float,
    nesterov: bool,
    grad_scale: Tensor | None = None,
    active: Tensor | None = None,
    shadow: Tensor | None = None,
) -> None:
    """One SGD step of every client, in place.

        g <- grad_scale * g + weight_decay * decay_mask * p
        m <- mu * m + g
        p <- p - learning_rate * (g + mu * m  if nesterov else  m)

    params, momentum, grads: [clients, n_params], rows contiguous; momentum None where mu is 0; grads may be overwritten
    learning_rate, grad_scale: [clients]        decay_mask: [n_params], 1 where decay applies
    active: bool [clients]; the rows of the others keep every bit
    shadow: [clients, n_params] of a narrower dtype, becomes a copy of params
    As torch.optim.SGD(dampening=0): the rate stays outside the buffer, unlike Sutskever et al. 2013.
    """
    if active is not None:
        frozen = ~active
        kept = [None if buffer is None else buffer[frozen] for buffer in (params, momentum, shadow)]
    if grad_scale is not None:
        grads.mul_(grad_scale.to(grads.dtype).unsqueeze(-1))
    if weight_decay:
        grads.addcmul_(params, decay_mask, value=weight_decay)
    update = grads
    if momentum is not None:
        momentum.mul_(mu).add_(grads)
        update = grads.add_(momentum, alpha=mu) if nesterov else momentum
    params.addcmul_(update, learning_rate.to(params.dtype).unsqueeze(-1), value=-1)
    if shadow is not None:
        shadow.copy_(params)
    if active is not None:
        for buffer, rows in zip((params, momentum, shadow), kept, strict=True):
            if buffer is not None and rows is not None:
                buffer[frozen] = rows
