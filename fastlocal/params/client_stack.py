"""Flat buffers of the resident clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .correction import Correction

MOMENTUM = "momentum"
"""Name of the momenta, or AdamW's means of gradients, in a ClientStore."""
SQUARE = "mean of squares"
"""Name of AdamW's means of squared gradients."""
STEPS = "optimizer steps"
"""Name of the numbers of AdamW steps."""

MOMENTS = (MOMENTUM, SQUARE, STEPS)
"""Names of the state of optimizers."""


@dataclass(frozen=True)
class ClientStack:
    """Parameters and state of a chunk of clients, one row each. Gradients belong to the executor.

    Attributes:
        params: [clients, n_params].
        momentum: [clients, n_params], the momenta of SGD or AdamW's means of gradients; or None.
        state: {name: [clients, *shape]} of the buffers that a forward pass changes.
        square: [clients, n_params], AdamW's means of squared gradients, or None.
        steps: float64 [clients], number of AdamW steps of each client, or None.
        correction: Terms that the run's algorithm adds to the gradients, or None.
    """

    params: Tensor
    momentum: Tensor | None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    square: Tensor | None = None
    steps: Tensor | None = None
    correction: Correction | None = None

    @classmethod
    def of(cls, params: Tensor, rows: Mapping[str, Tensor], correction: Correction | None = None) -> ClientStack:
        """Return the stack of params [clients, n_params] and all other rows {name: [clients, ...]}."""
        momentum, square, steps = (rows.get(name) for name in MOMENTS)
        state = {name: values for name, values in rows.items() if name not in MOMENTS}
        return cls(params, momentum, state, square, steps, correction)

    def part(self, clients: slice) -> ClientStack:
        """Return views of these clients' rows."""

        def own(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[clients]

        return ClientStack(
            self.params[clients],
            own(self.momentum),
            {name: rows[clients] for name, rows in self.state.items()},
            own(self.square),
            own(self.steps),
            None if self.correction is None else self.correction.part(clients),
        )

    @property
    def moments(self) -> dict[str, Tensor]:
        """The state of the clients' optimizers, by name."""
        named = zip(MOMENTS, (self.momentum, self.square, self.steps), strict=True)
        return {name: rows for name, rows in named if rows is not None}

    @property
    def buffers(self) -> list[Tensor]:
        """All tensors that a local step changes."""
        return [self.params, *self.moments.values(), *self.state.values()]

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors that a local step reads or changes."""
        return self.buffers + ([] if self.correction is None else self.correction.tensors)


def repeated(start: Mapping[str, Tensor], clients: int) -> dict[str, Tensor]:
    """Return rows {name: [clients, ...]} of start values {name: [...]}, which all clients share."""
    return {name: value.repeat(clients, *(1 for _ in value.shape)) for name, value in start.items()}


ClientRows: TypeAlias = range | Tensor
"""Numbers of rows, each once: a range, or int64 [rows] on the CPU."""


def take(values: Tensor, rows: ClientRows) -> Tensor:
    """Return the entries of a tensor on the CPU at these rows; a view of a range."""
    return values[rows] if isinstance(rows, Tensor) else values[rows.start : rows.stop]


@dataclass(frozen=True)
class SavedClients:
    """The part of a saved state that belongs to a ClientStore.

    Attributes:
        rows: {name: [clients, ...]}, one row for each client of the process.
        shared: {name: value} that all processes share.
        about: JSON values that identify files of rows beside the state, or None if there are none.
    """

    rows: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] | None = None


class ClientStore:
    """State of a process's clients beside their parameters: momenta, and buffers that a forward pass changes.

    A row belongs to a client, or, if clients do not keep their state, to a place in the cohort of a round. On a CPU,
    and if all clients are resident, the rows of a range are a view. On a GPU with fewer resident clients the rows wait
    in pinned host memory.
    """

    def __init__(self, clients: range, start: Mapping[str, Tensor], chunk: int, device: torch.device) -> None:
        """Give every client the same start values.

        Args:
            clients: Numbers of the process's rows.
            start: {name: start value of one client}.
            chunk: Clients resident at once.
            device: Device of the training.
        """
        self.clients = clients
        self._chunk = chunk
        self.on_host = device.type != "cpu" and chunk < len(clients)
        place = torch.device("cpu") if self.on_host else device
        self.all = {
            name: value.detach().to(place).repeat(len(clients), *(1 for _ in value.shape))
            for name, value in start.items()
        }
        self.resident: dict[str, Tensor] = {}
        self._fetched: dict[str, Tensor] = {}
        if self.on_host:
            self.all = {name: rows.pin_memory() for name, rows in self.all.items()}
            self.resident = {name: rows[:chunk].to(device) for name, rows in self.all.items()}

    @property
    def names(self) -> Collection[str]:
        """Names of the rows."""
        return self.all.keys()

    def fetch(self, clients: ClientRows) -> dict[str, Tensor]:
        """Return the rows {name: [clients, ...]} of these clients on the device, to be changed in place."""
        rows = self.rows(clients)
        if not self.on_host and isinstance(clients, range):
            self._fetched = {}
            return rows
        if not self.resident:  # the same memory in every round, as a captured step needs
            self.resident = {name: torch.empty_like(values[: self._chunk]) for name, values in self.all.items()}
        self._fetched = {
            name: self.resident[name][: len(clients)].copy_(values, non_blocking=True) for name, values in rows.items()
        }
        return dict(self._fetched)

    def store(self, clients: ClientRows) -> None:
        """Write the rows of the last `fetch` back; from a GPU the copies may be queued behind the local steps."""
        for name, values in self._fetched.items():
            if isinstance(clients, Tensor):
                values = values.to(self.all[name].device)
                self.all[name][self._index(clients)] = values
            else:
                self.all[name][self._index(clients)].copy_(values, non_blocking=True)

    def read_ahead(self, upcoming: Callable[[], ClientRows | None]) -> None:
        """Read the rows of the next `fetch` while those of the last one train.

        Args:
            upcoming: Returns the clients of the next `fetch`, or None if there is none.
        """

    def rows(self, clients: ClientRows, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the rows {name: [clients, ...]} of these names, or of all, where they are kept.

        They are views of a range, else copies.
        """
        index = self._index(clients)
        return {name: self.all[name][index] for name in names or self.names}

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Give every client the values {name: [...]} of these names."""
        for name, value in values.items():
            self.all[name].copy_(value.to(self.all[name].device))

    def save(self) -> SavedClients:
        """Return what a saved state holds of the clients; views, to be copied at once."""
        return SavedClients(self.all)

    def restore(self, saved: SavedClients) -> None:
        """Restore the clients of a saved state."""
        for name, rows in self.all.items():
            rows.copy_(saved.rows[name])

    def sync(self) -> None:
        """Flush files of rows to the disk, before a saved state refers to them."""

    def close(self) -> None:
        """Close files of rows; raises nothing."""

    def _index(self, clients: ClientRows) -> slice | Tensor:
        if isinstance(clients, Tensor):
            return clients - self.clients.start
        return slice(clients.start - self.clients.start, clients.stop - self.clients.start)
