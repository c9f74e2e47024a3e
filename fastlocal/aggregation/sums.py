"""Sums over clients: accumulation, their format on the wire, the mean."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastlocal import kernels

LARGEST_FIXED = 2.0**24
"""Maximum absolute value of a parameter in FixedSums."""


class Sums(Protocol):
    """Arithmetic on columns of the parameters, without state.

    Attributes:
        rows: Sums per column.
        wire_dtype: Their dtype on the wire.
        of_changes: Whether the wire holds the clients' changes, else the clients.
    """

    rows: int
    wire_dtype: torch.dtype
    of_changes: bool

    def accumulate(self, params: Tensor, sums: Tensor, weights: Tensor | None) -> None:
        """Add clients, params [clients, columns], to sums [rows, columns] float64.

        Args:
            params: The clients.
            sums: The sums.
            weights: float64 [clients], or None for 1.
        """

    def scratch_rows(self, clients: int) -> int:
        """Return the numbers per column that `accumulate` writes for a chunk of `clients`."""

    def to_wire(self, sums: Tensor, row: Tensor, added: float, wire: Tensor) -> None:
        """Encode the sums of clients of total weight `added`, started from row [columns], into wire [rows, columns]."""

    def client_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        """Encode a single client [columns] without sums; return False if there is no such shortcut."""

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor, total: float) -> None:
        """Decode the ranks' sum, of total weight `total`, into mean [columns], which may be `row`."""

    def finalize_local(self, sums: Tensor, total: float) -> Tensor:
        """Return the mean [columns] of a single rank's sums, of total weight `total`; it may reuse their memory."""


class FloatSums:
    """Sums of parameters in float64. The wire holds their difference from the clients' start.

        wire = sums - weight_of_rank * row        mean = row + sum(wire) / total weight

    So the float32 rounding of the wire is relative to the change of a round, and the mean is rounded once to the row's
    dtype. In float64 runs the wire is float64.
    """

    rows = 1
    of_changes = True

    def __init__(self, wire_dtype: torch.dtype, device: torch.device) -> None:
        self.wire_dtype = wire_dtype
        self._add = kernels.get("client_mean", device=device)

    def accumulate(self, params: Tensor, sums: Tensor, weights: Tensor | None) -> None:
        self._add(params, sums[0], 1.0 if weights is None else weights)

    def scratch_rows(self, clients: int) -> int:
        return 1

    def to_wire(self, sums: Tensor, row: Tensor, added: float, wire: Tensor) -> None:
        torch.sub(sums[0], row, alpha=added, out=wire[0])

    def client_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        # a seventh of the time of the sums on a CPU
        if params.dtype != self.wire_dtype:
            return False
        torch.sub(params, row, out=wire[0])
        return True

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor, total: float) -> None:
        torch.add(row, wire[0], alpha=1.0 / total, out=mean)

    def finalize_local(self, sums: Tensor, total: float) -> Tensor:
        return sums[0].mul_(1.0 / total)


class FixedSums:
    """Order-independent sums, the same to the bit: each parameter is split into two parts on grids that add exactly.

    With C the least power of two that is at least `clients`, a parameter p becomes high + low:

        high: p rounded to a multiple of q = 2^-27 C        low: p - high rounded to a multiple of r = 2^-79 C^2

    so that any sum of `clients` parts has at most 52 bits, which float64 adds without rounding, for any number of ranks
    and any chunks (Demmel and Nguyen 2013 pre-round likewise). A client with a weight is rounded after it. The
    error of a parameter is at most r/2: 8.7e-19 for
    1,000 clients, 9e-13 for a million. A parameter beyond LARGEST_FIXED, or not finite, makes the mean NaN.


    Costs two float64 numbers per column, 16 bytes on the wire.
    """

    rows = 2
    wire_dtype = torch.float64
    of_changes = False

    def __init__(self, clients: int) -> None:
        at_least = 2.0 ** (clients - 1).bit_length()
        high_grid = LARGEST_FIXED * 2.0**-51 * at_least
        # adding and subtracting it rounds to the grid: the sum's last bit is the grid

        self._high = 1.5 * 2.0**52 * high_grid
        self._low = 1.5 * high_grid * at_least

    def accumulate(self, params: Tensor, sums: Tensor, weights: Tensor | None) -> None:
        values = params.to(torch.float64, copy=True)
        if weights is not None:
            values *= weights.unsqueeze(-1)
        values.masked_fill_(values.abs() > LARGEST_FIXED, torch.nan)
        high = (values + self._high).sub_(self._high)
        low = values.sub_(high).add_(self._low).sub_(self._low)
        sums[0] += high.sum(dim=0)
        sums[1] += low.sum(dim=0)

    def scratch_rows(self, clients: int) -> int:
        return clients

    def to_wire(self, sums: Tensor, row: Tensor, added: float, wire: Tensor) -> None:
        wire.copy_(sums)

    def client_to_wire(self, params: Tensor, row: Tensor, wire: Tensor) -> bool:
        return False

    def from_wire(self, wire: Tensor, row: Tensor, mean: Tensor, total: float) -> None:
        torch.add(wire[0], wire[1], out=mean).div_(total)

    def finalize_local(self, sums: Tensor, total: float) -> Tensor:
        mean = sums[0]
        self.from_wire(sums, mean, mean, total)
        return mean
