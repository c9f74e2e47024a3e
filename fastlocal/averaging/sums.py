"""Sums over clients: how they are added, what of them is sent to other ranks, and the mean that they make."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastlocal import kernels

LARGEST_FIXED = 2.0**24
"""Parameters beyond it, in absolute value, have no place in FixedSums."""


class Sums(Protocol):
    """Arithmetic on some columns of the parameters; it holds no sums itself.

    rows: numbers per column that are added        sent: their dtype on the wire
    """

    rows: int
    sent: torch.dtype

    def add(self, params: Tensor, sums: Tensor) -> None:
        """Add clients, params [clients, columns], to sums [rows, columns] float64."""

    def to_wire(self, sums: Tensor, row: Tensor, share: float, wire: Tensor) -> None:
        """Write what the ranks add up into wire [rows, columns].

        row: [columns], what all clients started from        share: this rank's part of all clients
        """

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor) -> None:
        """Write into mean [columns] what the ranks' sum makes; it may be wire's memory where there is one row."""

    def alone(self, sums: Tensor) -> Tensor:
        """The mean [columns] of one rank's sums, which may be in their memory."""


class FloatSums:
    """Sums of params / clients in float64. The wire has them as the difference from this rank's share of the row.

    Shares add up to 1, so that adding the row gives the mean. What is rounded to float32 is then no more than a round's
    change, and the mean is the exact one, rounded to the row's dtype. In float64 runs the wire has float64.
    """

    rows = 1

    def __init__(self, clients: int, sent: torch.dtype, device: torch.device) -> None:
        self.sent = sent
        self._weight = 1.0 / clients
        self._add = kernels.get("client_mean", device=device)

    def add(self, params: Tensor, sums: Tensor) -> None:
        self._add(params, sums[0], self._weight)

    def to_wire(self, sums: Tensor, row: Tensor, share: float, wire: Tensor) -> None:
        torch.sub(sums[0], row, alpha=share, out=wire[0])

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor) -> None:
        torch.add(row, wire[0], out=mean)

    def alone(self, sums: Tensor) -> Tensor:
        return sums[0]
