"""Flat buffers of the resident clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOMENTUM = "momentum"


@dataclass(frozen=True)
class ClientStack:
    """Parameters and state of a chunk of clients, one row each. Gradients belong to the executor.

    Attributes:
        params: [clients, n_params].
        momentum: [clients, n_params], or None.
        state: {name: [clients, *shape]} of the buffers that a forward pass changes.
    """

    params: Tensor
    momentum: Tensor | None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, clients: slice) -> ClientStack:
        """Return views of these clients' rows."""
        momentum = None if self.momentum is None else self.momentum[clients]
        return ClientStack(self.params[clients], momentum, {name: rows[clients] for name, rows in self.state.items()})

    @property
    def buffers(self) -> list[Tensor]:
        """All tensors that a local step changes."""
        return [self.params, *([] if self.momentum is None else [self.momentum]), *self.state.values()]


class ClientStore:
    """State that stays with a process's clients between rounds: momenta, and buffers that a forward pass changes.

    On a CPU, and if all clients are resident, a chunk's rows are a view. On a GPU with fewer resident clients the rows
    wait in pinned host memory.
    """

    def __init__(self, clients: range, start: Mapping[str, Tensor], chunk: int, device: torch.device) -> None:
        """Give every client the same start values.

        Args:
            clients: Indices of the process's clients.
            start: {name: start value of one client}.
            chunk: Clients resident at once.
            device: Device of the training.
        """
        self.clients = clients
        self.on_host = device.type != "cpu" and chunk < len(clients)
        place = torch.device("cpu") if self.on_host else device
        self.all = {
            name: value.detach().to(place).repeat(len(clients), *(1 for _ in value.shape))
            for name, value in start.items()
        }
        self.resident: dict[str, Tensor] = {}
        if self.on_host:
            self.all = {name: rows.pin_memory() for name, rows in self.all.items()}
            self.resident = {name: rows[:chunk].to(device) for name, rows in self.all.items()}

    def fetch(self, clients: range) -> dict[str, Tensor]:
        """Return the rows {name: [clients, ...]} of these clients on the device, to be changed in place."""
        rows = self._rows(clients)
        if not self.on_host:
            return rows
        return {
            name: self.resident[name][: len(clients)].copy_(values, non_blocking=True) for name, values in rows.items()
        }

    def store(self, clients: range) -> None:
        """Write the rows of the last `fetch` back."""
        for name, resident in self.resident.items():
            self._rows(clients)[name].copy_(resident[: len(clients)])

    def _rows(self, clients: range) -> dict[str, Tensor]:
        here = slice(clients.start - self.clients.start, clients.stop - self.clients.start)
        return {name: rows[here] for name, rows in self.all.items()}
