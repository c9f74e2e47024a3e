"""Where losses and parameters stop being finite."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor


def not_finite(losses: Tensor, params: Tensor, first_step: int, first_client: int) -> Iterator[tuple[int, int, str]]:
    """(step, client, what) of the first loss of a chunk, and of its first client's parameters, not finite.

    losses: [local_steps, clients] on the CPU        params: [clients, n_params] after them
    first_step, first_client: what the chunk's steps and clients are counted from
    """
    if not math.isfinite(losses.double().sum().item()):
        for step, client in (~losses.isfinite()).nonzero()[:1].tolist():
            yield first_step + step, first_client + client, f"the loss is {losses[step, client].item()}"
    if not math.isfinite(params.sum(dim=1).sum().item()):
        for client in (~params.isfinite().all(dim=1)).nonzero()[:1].flatten().tolist():
            yield first_step + len(losses) - 1, first_client + client, "the parameters are no longer finite"
