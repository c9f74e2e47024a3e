"""The flat buffers of the resident clients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClientStack:
    """Parameters and momenta of a chunk of clients, one row each; gradients belong to the executor that makes them.

    params: [clients, n_params]        momentum: the same, or None where there is none
    """

    params: Tensor
    momentum: Tensor | None

    def part(self, clients: slice) -> ClientStack:
        """Views of these clients' rows."""
        return ClientStack(self.params[clients], None if self.momentum is None else self.momentum[clients])


class MomentumStore:
    """The momenta of a process's clients, which stay with them from round to round.

    On a CPU, and where all clients are resident, a chunk's momenta are a view. Beside a GPU that holds fewer clients
    than there are, they wait in pinned host memory.
    """

    def __init__(self, clients: range, n_params: int, chunk: int, device: torch.device, dtype: torch.dtype) -> None:
        self.clients = clients
        self.away = device.type != "cpu" and chunk < len(clients)
        self.all = torch.zeros(len(clients), n_params, dtype=dtype, device="cpu" if self.away else device)
        if self.away:
            self.all = self.all.pin_memory()
        self.resident = torch.zeros(chunk, n_params, dtype=dtype, device=device) if self.away else None

    def fetch(self, clients: range) -> Tensor:
        """The momenta [clients, n_params] of these clients on the device, to be changed in place."""
        rows = self._rows(clients)
        if self.resident is None:
            return rows
        return self.resident[: len(clients)].copy_(rows, non_blocking=True)

    def store(self, clients: range) -> None:
        """Keep what became of the momenta that `fetch` gave."""
        if self.resident is not None:
            self._rows(clients).copy_(self.resident[: len(clients)])

    def _rows(self, clients: range) -> Tensor:
        return self.all[clients.start - self.clients.start : clients.stop - self.clients.start]
