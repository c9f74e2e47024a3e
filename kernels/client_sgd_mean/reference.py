"""Last local step of every client and the sum of the new parameters, in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..client_mean.reference import client_mean
from ..client_sgd.reference import client_sgd


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
    """Take one SGD step for every client, and add the weighted sum of the new params to a running mean, in place.

    As client_sgd, then client_mean of the new params, inactive clients included:

        total <- total + sum over clients of weight * params

    Args:
        total: [n_params].
        weight: A number, or [clients].
    """
    client_sgd(
        params,
        momentum,
        grads,
        learning_rate,
        decay_mask,
        mu=mu,
        weight_decay=weight_decay,
        nesterov=nesterov,
        grad_scale=grad_scale,
        active=active,
    )
    client_mean(params, total, weight)
