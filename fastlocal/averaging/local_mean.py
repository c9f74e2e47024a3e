"""The mean of all clients of one process, gathered chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlocal import kernels


class LocalMean:
    """A running mean in float64, so that any chunking gives the same mean to float32 rounding."""

    def __init__(self, n_params: int, clients: int, device: torch.device) -> None:
        self._total = torch.zeros(n_params, dtype=torch.float64, device=device)
        self._weight = 1.0 / clients
        self._add = kernels.get("client_mean", device=device)

    def add(self, params: Tensor) -> None:
        """Add the rows of a chunk. params: [clients, n_params]"""
        self._add(params, self._total, self._weight)

    def so_far(self) -> Tensor:
        """The sum [n_params] of what was added, itself: what is changed in it is changed here."""
        return self._total

    def take(self) -> Tensor:
        """The mean [n_params] in float64 of what was added, and start over."""
        mean = self._total.clone()
        self._total.zero_()
        return mean
