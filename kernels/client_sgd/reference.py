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
) -> None:
    """One SGD step of every client, in place.

        g <- g + weight_decay * decay_mask * p
        m <- mu * m + g
        p <- p - learning_rate * (g + mu * m  if nesterov else  m)

    params, momentum, grads: [clients, n_params], rows contiguous; momentum None where mu is 0; grads is overwritten
    learning_rate: [clients]        decay_mask: [n_params], 1 where decay applies
    As torch.optim.SGD(dampening=0): the rate stays outside the buffer, unlike Sutskever et al. 2013.
    """
    if weight_decay:
        grads.addcmul_(params, decay_mask, value=weight_decay)
    update = grads
    if momentum is not None:
        momentum.mul_(mu).add_(grads)
        update = grads.add_(momentum, alpha=mu) if nesterov else momentum
    params.addcmul_(update, learning_rate.to(params.dtype).unsqueeze(-1), value=-1)
