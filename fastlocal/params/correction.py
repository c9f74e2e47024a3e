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

    @property
    def any(self) -> bool:
        """Return True if an algorithm adds anything."""
        return self.fused or self.gradient is not None

    def zero(self, params: Tensor) -> Correction | None:
        """Return terms that change nothing, for steps that are timed; without the user's change of the gradients.

        Args:
            params: [clients, n_params], alike.
        """
        if not self.fused:
            return None
        prox = params.new_zeros(len(params)) if self.prox else None
        return Correction(params[0].clone(), prox, torch.zeros_like(params) if self.drift else None, late=self.late)


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

    def columns(self, place: slice) -> Correction:
        """Return the terms of some of the parameters."""
        drift = None if self.drift is None else self.drift[:, place]
        return dataclasses.replace(self, center=self.center[..., place], drift=drift)

    @property
    def fused(self) -> dict[str, Any]:
        """Arguments of kernels.client_sgd."""
        return {
            "center": self.center,
            "group": self.group,
            "prox": self.prox,
            "drift": self.drift,
            "late": self.late,
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that a step reads."""
        own = [rows for rows in (self.center, self.group, self.prox, self.drift) if rows is not None]
        return own + ([] if self.state is None else self.state.tensors)
