"""Random words for a module's own draws, as an operator with a vmap rule: each client has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .light_ops import define
from .philox import Purpose, draw

MAX_CALLS = 2**24
"""Maximum number of draws in a local step, a limit of the counter."""


def module_words(clients: Tensor, step: Tensor, size: int, call: int, seed: int) -> Tensor:
    """Return words that depend only on (seed, client, step, call, element).

    Args:
        clients: int64 [...], indices of the clients.
        step: int64 [], global local step.
        size: Elements per client.
        call: Number of the draw in the step, from 0 on.
        seed: Seed of the run.

    Returns:
        int64 [..., size], words in [0, 2^32).
    """
    words: Tensor = _OP(clients, step, size, call, seed)
    return words


def _words(clients: Tensor, step: Tensor, size: int, call: int, seed: int) -> Tensor:
    blocks = -(-size // 4)
    words = draw(seed, Purpose.MODULE + (call << 8), clients, step, blocks)
    return torch.stack(words, dim=-1).flatten(-2)[..., :size].contiguous()


def _fake(clients: Tensor, step: Tensor, size: int, call: int, seed: int) -> Tensor:
    return clients.new_empty((*clients.shape, size))


def _vmap(info: Any, in_dims: tuple[Any, ...], clients: Tensor, step: Tensor, *rest: int) -> tuple[Tensor, int]:
    assert in_dims[1] is None, "one step for all clients"
    if in_dims[0] is None:
        return module_words(clients, step, *rest).expand(info.batch_size, *clients.shape, rest[0]), 0
    return module_words(clients.movedim(in_dims[0], 0).contiguous(), step, *rest), 0


_OP = define("module_words(Tensor clients, Tensor step, int size, int call, int seed) -> Tensor", _words, _fake, _vmap)
