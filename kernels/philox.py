"""Philox4x32-10, the counter-based generator of all random draws.

A draw is a pure function of (seed, purpose, client, step, position in the batch), so that no result depends on
chunks, the number of processes, the source of the data or an interruption.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK32 = 0xFFFFFFFF


class Purpose(IntEnum):
    """Purpose of a draw: the fourth word of the counter."""

    SAMPLE = 0
    CROP = 1
    LABEL_NOISE = 2
    RESIZED_CROP = 3
    MODULE = 4
    """The number of the draw within the step is in the bits above the lowest eight."""
    DATASET = 5
    CLIENT_EPOCH = 6
    COHORT = 7
    DROP = 8
    ESTIMATE = 9
    STRAGGLER = 10
    CLIENT_TEST = 11


Key = tuple[int, int] | tuple[Tensor, Tensor]


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: Key) -> tuple[Tensor, ...]:
    """Run ten rounds of Philox4x32 on int64 tensors of 32-bit words.

    Args:
        counter: Four broadcastable tensors of words, low to high.
        key: Two words, numbers or int64 tensors broadcastable to the counter.

    Returns:
        Four int64 tensors, words in [0, 2^32).
    """
    words = torch.broadcast_tensors(*counter)
    if words[0].device.type == "cpu":
        return _on_cpu(torch.stack(words), key)
    x0, x1, x2, x3 = words
    k0, k1 = key[0] & MASK32, key[1] & MASK32
    for _ in range(ROUNDS):
        # int64 wraps, but the low 64 bits of the product are exact, and the mask removes the shift's sign bits
        product0, product1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            ((product1 >> 32) & MASK32) ^ x1 ^ k0,
            product1 & MASK32,
            ((product0 >> 32) & MASK32) ^ x3 ^ k1,
            product0 & MASK32,
        )
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK32, (k1 + KEY_INCREMENTS[1]) & MASK32
    return x0, x1, x2, x3


def _on_cpu(words: Tensor, key: Key) -> tuple[Tensor, ...]:
    """Compute words [4, ...] by numpy, both halves of a round at once: fewer and cheaper calls.

    A draw for 128 samples takes 0.1 ms; through torch's operators 0.3 ms.
    """
    axes = words.dim() - 1
    if isinstance(key[0], Tensor):
        pair = torch.stack(torch.broadcast_tensors(*key))  # type: ignore[arg-type]
        keys = _round_keys(pair).view(ROUNDS, 2, *[1] * (axes + 1 - pair.dim()), *pair.shape[1:]).numpy().view("uint64")
        multipliers = torch.tensor(MULTIPLIERS).numpy().view("uint64").reshape(2, *[1] * axes)
    else:
        multipliers, keys = _constants(key)
        multipliers, keys = multipliers.reshape(2, *[1] * axes), keys.reshape(ROUNDS, 2, *[1] * axes)
    even, odd = words[0::2].numpy().view("uint64"), words[1::2].numpy().view("uint64")
    for round_key in keys:
        products = even * multipliers
        even, odd = (products >> 32)[::-1] ^ odd ^ round_key, (products & MASK32)[::-1]
    (x0, x2), (x1, x3) = (torch.from_numpy(half.view("int64").copy()) for half in (even, odd))
    return x0, x1, x2, x3


@functools.lru_cache(maxsize=8)
def _constants(key: tuple[int, int]) -> tuple[Any, Any]:
    """Return 64-bit arrays: the multipliers [2], and the keys of all rounds [ROUNDS, 2]."""
    return torch.tensor(MULTIPLIERS).numpy().view("uint64"), _round_keys(torch.tensor(key)).numpy().view("uint64")


def _round_keys(key: Tensor) -> Tensor:
    """Return the keys of all rounds, int64 [ROUNDS, 2, ...], of a key [2, ...]."""
    steps = torch.arange(ROUNDS).unsqueeze(-1) * torch.tensor(KEY_INCREMENTS)
    return (key + steps.view(ROUNDS, 2, *[1] * (key.dim() - 1))) & MASK32


def draw(seed: Tensor | int, purpose: int, clients: Tensor, step: Tensor | int, batch: int) -> tuple[Tensor, ...]:
    """Draw four random words for every position of every client's batch.

    Args:
        seed: Seed of the run, a number or int64 [...] broadcastable to clients.
        purpose: A Purpose.
        clients: int64 [...], indices of the clients.
        step: Global local step, a number or int64 [...] broadcastable to clients.
        batch: Positions.

    Returns:
        Four int64 tensors [..., batch], words in [0, 2^32).
    """
    position = torch.arange(batch, dtype=torch.int64, device=clients.device)
    if not isinstance(step, Tensor):  # a fill: a copy from the host would synchronize with a GPU
        step = torch.full((), step, dtype=torch.int64, device=clients.device)
    steps = step.to(clients.device, torch.int64)
    clients, steps = torch.broadcast_tensors(clients, steps)
    counter = (position, clients.unsqueeze(-1), steps.unsqueeze(-1), torch.full_like(position, int(purpose)))
    if isinstance(seed, Tensor):
        seed = seed.unsqueeze(-1)
    return philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))  # type: ignore[arg-type]


def below(word: Tensor, bound: int) -> Tensor:
    """Map a word to an integer in [0, bound), bound at most 2^31; the bias is below bound / 2^32."""
    return (word * bound) >> 32


def happens(word: Tensor, probability: Tensor | float) -> Tensor:
    """Return True with `probability`, a number or floating [...] broadcastable to word: never at 0 and always at 1."""
    if isinstance(probability, Tensor):
        return word < (probability.double() * 2**32).round()
    return word < round(probability * 2**32)
