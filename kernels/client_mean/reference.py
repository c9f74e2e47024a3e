"""Mean over the client axis in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def client_mean(params: Tensor, total: Tensor, weight: float | Tensor, *, broadcast: bool = False) -> None:
    """Add the weighted sum of a chunk's rows to a running mean, in place.

        total <- total + sum over clients of weight * params

    Args:
        params: [clients, n_params].
        total: [n_params], float64 for a mean that does not depend on the chunks.
        weight: 1 / number of all clients, so that `total` is their mean after the last chunk; or [clients].
        broadcast: Write the new total to every row.
    """
    if isinstance(weight, Tensor):
        total.addmv_(params.to(total.dtype).t(), weight.to(total.dtype))
    elif len(params) == 1:  # a third of the time of a sum
        total.add_(params[0], alpha=weight)
    else:
        total.add_(params.sum(dim=0, dtype=total.dtype), alpha=weight)
    if broadcast:
        params.copy_(total)
