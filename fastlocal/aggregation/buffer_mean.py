"""Buffers of the averaged model, for buffers that a forward pass changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..distributed.world import World
from ..params.client_stack import ClientRows, ClientStore
from .averager import Aggregator

AT_ONCE = 64
"""Clients whose rows are concatenated at a time."""


class BufferMean:
    """Means over a round's clients of floating and complex buffers; the first client's values of others.

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
        self._like = {name: torch.empty_like(value, device="meta") for name, value in start.items()}
        self._means = [name for name, value in start.items() if value.is_floating_point() or value.is_complex()]
        self._firsts = [name for name in start if name not in self._means]
        self._row, self._averager = torch.empty(0), None
        if self._means:
            self._row = torch.cat([_numbers(start[name].unsqueeze(0))[0] for name in self._means]).to(dtype)
            self._averager = make_averager(self._row)

    def __call__(
        self,
        store: ClientStore,
        clients: ClientRows,
        weights: Tensor | None,
        total: float,
        averaging: AbstractContextManager[object],
    ) -> dict[str, Tensor]:
        """Return the buffers by name.

        Args:
            store: Rows of this process's clients.
            clients: Rows of this process's clients of the round.
            weights: float64 [clients], their weights, or None for 1.
            total: Weight of all clients of the round.
            averaging: Context of the collectives.
        """
        found: dict[str, Tensor] = {}
        if self._averager is not None:
            for begin in range(0, len(clients), AT_ONCE):
                some = slice(begin, begin + AT_ONCE)
                rows_of = store.rows(clients[some], self._means)
                rows = torch.cat([_numbers(rows_of[name]) for name in self._means], dim=1)
                part = None if weights is None else weights[some]
                self._averager.accumulate(rows.to(self._row), begin + AT_ONCE >= len(clients), part)
            with averaging:
                self._averager.start(self._row, total)
                mean = self._averager.finish().to(self._row.dtype)
            self._row = mean.clone()
            sizes = [_numbers(self._like[name].unsqueeze(0)).shape[1] for name in self._means]
            for name, numbers in zip(self._means, mean.split(sizes), strict=True):
                complex_ = self._like[name].is_complex()
                value = torch.view_as_complex(numbers.reshape(-1, 2).clone()) if complex_ else numbers
                found[name] = value.reshape(self._like[name].shape)
        if self._firsts:
            rows_of = store.rows(clients[:1], self._firsts)
            own = {name: rows_of[name][0].tolist() for name in self._firsts} if len(clients) else None
            ranks = self._world.all_gather_object(own, "the buffers of the first client")
            first = next(buffers for buffers in ranks if buffers is not None)
            for name in self._firsts:
                like = self._like[name]
                found[name] = torch.tensor(first[name], dtype=like.dtype).reshape(like.shape)
        return found


def _numbers(rows: Tensor) -> Tensor:
    """View rows as real numbers, [clients, numbers]."""
    real = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows
    return real.reshape(len(rows), -1)
