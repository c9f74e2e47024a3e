"""Random words for a module's own draws, as an operator with a vmap rule: each client has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .light_ops import define
from .philox import Purpose, draw

MAX_CALLS = 2**24
"""Maximum number of draws in a local step, a limit of the counter."""


def module_words(clients: Tensor, step: Tensor, size: int, call: int, seed: Tensor | int) -> Tensor:
    """Return words that depend only on (seed, client, step, call, element).

    Args:
        clients: int64 [...], indices of the clients.
        step: int64 [] or [...] broadcastable to clients, global local step.
        size: Elements per client.
        call: Number of the draw in the step, from 0 on.
        seed: Seed of the run, a number or int64 [...] broadcastable to clients.

    Returns:
        int64 [..., size], words in [0, 2^32).
    """
    number, seeds = (0, seed) if isinstance(seed, Tensor) else (seed, None)
    words: Tensor = _OP(clients, step, size, call, number, seeds)
    return words


def purpose_of(call: int) -> int:
    """Return the fourth word of the counter of a draw."""
    return Purpose.MODULE + (call << 8)


def _words(clients: Tensor, step: Tensor, size: int, call: int, seed: int, seeds: Tensor | None) -> Tensor:
    blocks = -(-size // 4)
    words = draw(seed if seeds is None else seeds, purpose_of(call), clients, step, blocks)
    return torch.stack(words, dim=-1).flatten(-2)[..., :size].contiguous()


def _fake(clients: Tensor, step: Tensor, size: int, call: int, seed: int, seeds: Tensor | None) -> Tensor:
    return clients.new_empty((*clients.shape, size))


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    clients: Tensor,
    step: Tensor,
    size: int,
    call: int,
    seed: int,
    seeds: Tensor | None,
) -> tuple[Tensor, int]:
    if in_dims[0] is None and (in_dims[1] is not None or in_dims[5] is not None):
        clients, in_dims = clients.expand(info.batch_size, *clients.shape), (0, *in_dims[1:])
    if in_dims[0] is None:
        words: Tensor = _OP(clients, step, size, call, seed, seeds)
        return words.expand(info.batch_size, *words.shape), 0
    clients = clients.movedim(in_dims[0], 0).contiguous()
    step = _beside(step, in_dims[1], clients)
    seeds = None if seeds is None else _beside(seeds, in_dims[5], clients)
    return _OP(clients, step, size, call, seed, seeds), 0


def _beside(values: Tensor, dim: int | None, clients: Tensor) -> Tensor:
    """Return values, batched at `dim`, broadcastable to clients, which are batched at 0."""
    if dim is None:
        return values
    values = values.movedim(dim, 0)
    return values.reshape(len(values), *[1] * (clients.dim() - values.dim()), *values.shape[1:])


_SCHEMA = "module_words(Tensor clients, Tensor step, int size, int call, int seed, Tensor? seeds) -> Tensor"
_OP = define(_SCHEMA, _words, _fake, _vmap)
