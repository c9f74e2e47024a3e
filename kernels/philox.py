"""Philox4x32-10, the counter-based generator behind every random draw.

A draw is a pure function of (seed, purpose, client, step, position in the batch), so that no result depends on
chunking, on the number of processes, on the source of the data or on an interruption.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK32 = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a draw is for: the fourth word of the counter."""

    SAMPLE = 0
    CROP = 1
    LABEL_NOISE = 2
    RESIZED_CROP = 3


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on broadcastable int64 tensors that hold 32-bit words.

    counter: four words, low to high        key: two words
    Returns four int64 tensors of words in [0, 2^32).
    """
    x0, x1, x2, x3 = torch.broadcast_tensors(*counter)
    k0, k1 = key[0] & MASK32, key[1] & MASK32
    for _ in range(ROUNDS):
        # int64 wraps, but the low 64 bits of the product are exact, and masking undoes the sign of the shift
        product0, product1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((product1 >> 32) & MASK32) ^ x1 ^ k0,
            product1 & MASK32,
            ((product0 >> 32) & MASK32) ^ x3 ^ k1,
            product0 & MASK32,
        )
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK32, (k1 + KEY_INCREMENTS[1]) & MASK32
    return x0, x1, x2, x3


def draw(seed: int, purpose: Purpose, clients: Tensor, step: Tensor | int, batch: int) -> tuple[Tensor, ...]:
    """Four random words for every position of every client's batch.

    clients: [...] int64 client numbers        step: a number or int64 [...] broadcastable to clients
    Returns four int64 tensors [..., batch] of words in [0, 2^32).
    """
    position = torch.arange(batch, dtype=torch.int64, device=clients.device)
    steps = torch.as_tensor(step, dtype=torch.int64, device=clients.device)
    clients, steps = torch.broadcast_tensors(clients, steps)
    counter = (position, clients.unsqueeze(-1), steps.unsqueeze(-1), torch.full_like(position, int(purpose)))
    return philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))


def below(word: Tensor, bound: int) -> Tensor:
    """A word as an integer in [0, bound), bound at most 2^31; the bias is below bound / 2^32."""
    return (word * bound) >> 32


def happens(word: Tensor, probability: float) -> Tensor:
    """True with `probability`: exactly never at 0 and always at 1."""
    return word < round(probability * 2**32)
