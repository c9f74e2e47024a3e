"""Buffers of the averaged model, for buffers that a forward pass changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..distributed.world import World
from ..params.client_stack import ClientStore
from .averager import Aggregator

AT_ONCE = 64
"""Clients whose rows are concatenated at a time."""


class BufferMean:
    """Means over all clients of floating and complex buffers; client 0's values of others.

    Every rank must make one and call it in every round.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        dtype: torch.dtype,
        world: World,
        make_averager: Callable[[Tensor], Aggregator],
    ) -> None:
        """Prepare the averager.

        Args:
            start: {name: start value of every client}.
            dtype: Dtype of the run.
            world: Processes of the run.
            make_averager: Makes the averager of a row [numbers].
        """
        self._world = world
        self._shapes = {name: value.shape for name, value in start.items()}
        self._means = [name for name, value in start.items() if value.is_floating_point() or value.is_complex()]
        self._firsts = [name for name in start if name not in self._means]
        self._row, self._averager = torch.empty(0), None
        if self._means:
            self._row = torch.cat([_numbers(start[name].unsqueeze(0))[0] for name in self._means]).to(dtype)
            self._averager = make_averager(self._row)

    def __call__(self, store: ClientStore, averaging: AbstractContextManager[object]) -> dict[str, Tensor]:
        """Return the buffers by name.

        Args:
            store: Rows of this process's clients.
            averaging: Context of the collectives.
        """
        found: dict[str, Tensor] = {}
        if self._averager is not None:
            clients = len(store.clients)
            for begin in range(0, clients, AT_ONCE):
                some = slice(begin, begin + AT_ONCE)
                rows = torch.cat([_numbers(store.all[name][some]) for name in self._means], dim=1)
                self._averager.accumulate(rows.to(self._row), last=begin + AT_ONCE >= clients)
            with averaging:
                self._averager.start(self._row)
                mean = self._averager.finish().to(self._row.dtype)
            self._row = mean.clone()
            sizes = [_numbers(store.all[name][:1]).shape[1] for name in self._means]
            for name, numbers in zip(self._means, mean.split(sizes), strict=True):
                complex_ = store.all[name].is_complex()
                value = torch.view_as_complex(numbers.reshape(-1, 2).contiguous()) if complex_ else numbers
                found[name] = value.reshape(self._shapes[name])
        if self._firsts:
            own = {name: store.all[name][0].tolist() for name in self._firsts} if self._world.is_rank0 else None
            first = self._world.all_gather_object(own, "the buffers of client 0")[0]
            for name in self._firsts:
                found[name] = torch.tensor(first[name], dtype=store.all[name].dtype).reshape(self._shapes[name])
        return found


def _numbers(rows: Tensor) -> Tensor:
    """View rows as real numbers, [clients, numbers]."""
    real = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows
    return real.reshape(len(rows), -1)
