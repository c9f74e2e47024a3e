"""The last local step of every client with the sum of where it led, in plain torch; also the CPU path."""

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
    """One SGD step of every client, then their weighted sum added to a running mean, in place.

    As client_sgd, then client_mean of the new params, inactive clients included:

        total <- total + sum over clients of weight * params

    total: [n_params]        weight: a number, or [clients]
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
