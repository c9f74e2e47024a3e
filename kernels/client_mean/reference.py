"""The mean over the client axis, in plain torch; also the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def client_mean(params: Tensor, total: Tensor, weight: float) -> None:
    """Add the weighted sum of a chunk's rows to a running mean, in place.

        total <- total + weight * sum over clients of params

    params: [clients, n_params]        total: [n_params] float64
    weight: one over the number of all clients, so that after the last chunk `total` is their mean
    """
    total.add_(params.sum(dim=0, dtype=total.dtype), alpha=weight)
