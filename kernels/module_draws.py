"""Random words for what a module draws itself, as an operator that vmap knows: each client has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .light_ops import define
from .philox import Purpose, draw

MAX_CALLS = 2**24
"""Draws of one local step, as the counter has room for no more."""


def module_words(clients: Tensor, step: Tensor, size: int, call: int, seed: int) -> Tensor:
    """Words that depend on (seed, client, step, call, element) alone.

    Args:
        clients: int64 [...], the numbers of the clients.
        step: int64 [], the global number of the local step.
        size: Elements of a client.
        call: Which draw of the step it is, from 0 on.
        seed: Of the run.

    Returns:
        int64 [..., size] of words in [0, 2^32).
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
