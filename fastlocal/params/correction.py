"""Terms that an algorithm adds to the gradients of clients, as FedProx, SCAFFOLD and FedDyn do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Gradient = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(gradients [clients, n_params], parameters of that shape, start [n_params], state of the clients) -> gradients."""


@dataclass(frozen=True)
class CorrectionTerms:
    """The terms that a run's algorithm uses.

    Attributes:
        prox: Whether clients are pulled to their start.
        drift: Whether a row is added to each client's gradient.
        late: Whether the terms are added after momentum.
        gradient: The user's change of the gradients, or None.
    """

    prox: bool = False
    drift: bool = False
    late: bool = False
    gradient: Gradient | None = None

    @property
    def fused(self) -> bool:
        """Return True if the update of the clients computes the terms."""
        return self.prox or self.drift


@dataclass(frozen=True)
class Correction:
    """The terms of some clients in a round: prox * (p - center) + drift, added to the gradient of parameters p.

    Attributes:
        center: [n_params], or [groups, n_params] of several runs; starts of the round.
        group: int32 [clients], rows of `center`, or None for the only one.
        prox: [clients], or None.
        drift: [clients, n_params], or None.
        late: Whether the terms are added after momentum.
        gradient: The user's change of the gradients, or None.
        state: What it takes of the algorithm's state, with `part`; or None.
    """

    center: Tensor
    prox: Tensor | None = None
    drift: Tensor | None = None
    group: Tensor | None = None
    late: bool = False
    gradient: Gradient | None = None
    state: Any = None

    def part(self, clients: slice) -> Correction:
        """Return the terms of these clients."""

        def own(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[clients]

        return dataclasses.replace(
            self,
            prox=own(self.prox),
            drift=own(self.drift),
            group=own(self.group),
            state=None if self.state is None else self.state.part(clients),
        )

    def rows(self, params: Tensor, columns: slice = slice(None)) -> Tensor:
        """Return the terms of `columns` of the parameters, which are params [clients, columns]."""
        total = torch.zeros_like(params) if self.drift is None else self.drift[:, columns].clone()
        if self.prox is not None:
            centers = self.center if self.group is None else self.center[self.group.long()]
            total += self.prox.to(params.dtype).unsqueeze(-1) * (params - centers[..., columns])
        return total
