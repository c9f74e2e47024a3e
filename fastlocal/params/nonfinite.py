"""Detection of losses and parameters that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor


def find_nonfinite(
    losses: Tensor, params: Tensor | None, first_step: int, client_ids: Tensor, steps_of: Callable[[int], int]
) -> Iterator[tuple[int, int, str]]:
    """Yield (step, client, text) for a chunk's first non-finite loss and first client with non-finite parameters.

    Args:
        losses: [local_steps, clients] on the CPU.
        params: [clients, n_params] after these steps; None: their sum is finite.
        first_step: Local step of the first row of `losses`.
        client_ids: int64 [clients], numbers of the chunk's clients.
        steps_of: Returns the number of steps of a row.
    """
    if not math.isfinite(losses.double().sum().item()):
        for step, client in (~losses.isfinite()).nonzero()[:1].tolist():
            yield first_step + step, int(client_ids[client]), f"the loss is {losses[step, client].item()}"
    if params is not None:
        for client in (~params.isfinite().all(dim=1)).nonzero()[:1].flatten().tolist():
            yield first_step + steps_of(client) - 1, int(client_ids[client]), "the parameters are no longer finite"
