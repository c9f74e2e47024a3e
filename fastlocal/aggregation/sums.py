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

    def accumulate(self, params: Tensor, sums: Tensor) -> None:
        """Add clients, params [clients, columns], to sums [rows, columns] float64."""

    def rows_written(self, clients: int) -> int:
        """Numbers per column that `accumulate` writes on the way, for so many clients."""

    def to_wire(self, sums: Tensor, row: Tensor, added: int, wire: Tensor) -> None:
        """Write what the ranks add up into wire [rows, columns].

        row: [columns], what all clients started from        added: clients in the sums
        """

    def one_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        """The same of a single client [columns], from itself; False where there is no shorter way than by its sums."""

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor) -> None:
        """Write into mean [columns] what the ranks' sum makes; it may be row itself."""

    def finalize_local(self, sums: Tensor) -> Tensor:
        """The mean [columns] of one rank's sums, which may be in their memory."""


class FloatSums:
    """Sums of parameters in float64. The wire has them as the difference from as many times the row.

    Each rank takes off the row as often as it has clients, so that the mean is the row and 1 / clients of what the
    ranks add up. What is rounded to float32 is then no more than a round's change, and the mean is the exact one,
    rounded to the row's dtype. In float64 runs the wire has float64.
    """

    rows = 1

    def __init__(self, clients: int, sent: torch.dtype, device: torch.device) -> None:
        self.sent = sent
        self._clients = clients
        self._add = kernels.get("client_mean", device=device)

    def accumulate(self, params: Tensor, sums: Tensor) -> None:
        self._add(params, sums[0], 1.0)

    def rows_written(self, clients: int) -> int:
        return 1

    def to_wire(self, sums: Tensor, row: Tensor, added: int, wire: Tensor) -> None:
        torch.sub(sums[0], row, alpha=added, out=wire[0])

    def one_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        # a seventh of the time on a CPU
        if params.dtype != self.sent:
            return False
        torch.sub(params, row, out=wire[0])
        return True

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor) -> None:
        torch.add(row, wire[0], alpha=1.0 / self._clients, out=mean)

    def finalize_local(self, sums: Tensor) -> Tensor:
        return sums[0].mul_(1.0 / self._clients)


class FixedSums:
    """Sums that are the same to the bit in every order: of two parts of each parameter on a grid, which add up exactly.

    With C the least power of two that is at least `clients`, a parameter p is taken as high + low,

        high: p rounded to a multiple of q = 2^-27 C        low: p - high rounded to a multiple of r = 2^-79 C^2

    so that all sums of `clients` of either have at most 52 bits, which float64 adds without rounding, on one rank or on
    several, chunk by chunk or at once (Demmel and Nguyen 2013 pre-round likewise). A parameter is off by at most r/2:
    8.7e-19 for 1,000 clients, 9e-13 for a million. One beyond LARGEST_FIXED, or that is not finite, makes the mean NaN.

    It costs two float64 numbers per column, 16 bytes on the wire.
    """

    rows = 2
    sent = torch.float64

    def __init__(self, clients: int) -> None:
        self._clients = clients
        at_least = 2.0 ** (clients - 1).bit_length()
        high_grid = LARGEST_FIXED * 2.0**-51 * at_least
        # the sum with it has the grid as its last bit
        self._high = 1.5 * 2.0**52 * high_grid
        self._low = 1.5 * high_grid * at_least

    def accumulate(self, params: Tensor, sums: Tensor) -> None:
        values = params.to(torch.float64, copy=True)
        values.masked_fill_(values.abs() > LARGEST_FIXED, torch.nan)
        high = (values + self._high).sub_(self._high)
        low = values.sub_(high).add_(self._low).sub_(self._low)
        sums[0] += high.sum(dim=0)
        sums[1] += low.sum(dim=0)

    def rows_written(self, clients: int) -> int:
        return clients

    def to_wire(self, sums: Tensor, row: Tensor, added: int, wire: Tensor) -> None:
        wire.copy_(sums)

    def one_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        return False

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor) -> None:
        torch.add(wire[0], wire[1], out=mean).div_(self._clients)

    def finalize_local(self, sums: Tensor) -> Tensor:
        mean = sums[0]
        self.from_wire(sums, mean, mean)
        return mean
