"""Pseudo-random permutations that are computed for single positions, by a Feistel network with cycle walking.

A permutation of [0, n) is keyed by (seed, purpose, client, step), as a draw of `philox` is. ROUNDS steps permute
[0, 2^bits), the least power of two that holds n, each by a hash of one half of the bits that changes the other half; a
result outside [0, n) is permuted again (Black and Rogaway 2002). So each of a million clients can have an order of its
samples of which only the positions that a round needs are computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlocal.kernels import philox

Words = np.ndarray[Any, np.dtype[np.uint32]]

ROUNDS = 24
"""With 12, orders of five are not equally frequent (chi-square 623 for 119 degrees of freedom in 400,000 keys); with 24
they are (117).
"""
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)
"""Odd constants of MurmurHash3's finalizer, which mixes the bits of a half with a round's key."""


def permute(seed: int, purpose: int, clients: Tensor, steps: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
    """Permute positions, each under its own key and size; on the CPU.

    Args:
        seed: Seed of the run.
        purpose: A philox.Purpose.
        clients: int64 [...], first part of the key, below 2^32.
        steps: int64 [...], second part of the key, below 2^56.
        sizes: int64 [...], sizes n of the permutations, from 1 to 2^31.
        positions: int64 [...], in [0, n).

    Returns:
        int64 [...], of the shape that the arguments broadcast to. For fixed key and size it is a permutation of [0, n).
    """
    clients, steps, sizes, positions = torch.broadcast_tensors(clients, steps, sizes, positions)
    keys = _round_keys(seed, purpose, clients.reshape(-1), steps.reshape(-1))
    bounds, values = (part.reshape(-1).numpy().astype(np.uint32) for part in (sizes, positions))
    # numpy computes in 32 bits, which wrap as the hash needs: a tenth of the time of torch's int64
    bits = np.frexp((bounds - 1).astype(np.float64))[1].astype(np.uint32)
    low = bits // 2
    result = _feistel(values, keys, low, bits - low)
    outside = np.flatnonzero(result >= bounds)
    while len(outside):
        walked = _feistel(result[outside], keys[:, outside], low[outside], (bits - low)[outside])
        result[outside] = walked
        outside = outside[walked >= bounds[outside]]
    return torch.from_numpy(result.astype(np.int64)).reshape(positions.shape)


def _round_keys(seed: int, purpose: int, clients: Tensor, steps: Tensor) -> Words:
    """Return a key word of each round, [ROUNDS, n]; equal neighbours of (clients, steps) are drawn once."""
    pairs = torch.stack([clients, steps])
    is_new = torch.ones_like(clients, dtype=torch.bool)
    torch.any(pairs[:, 1:] != pairs[:, :-1], dim=0, out=is_new[1:])
    pairs, place = pairs[:, is_new], is_new.cumsum(0) - 1
    key = seed & philox.MASK32, seed >> 32 & philox.MASK32
    calls = torch.arange(ROUNDS // 4).unsqueeze(-1)
    counter = calls, pairs[0], pairs[1] & philox.MASK32, (pairs[1] >> 32 << 8 | int(purpose)) & philox.MASK32
    words = torch.stack(philox.philox4x32(counter, key), dim=1).view(ROUNDS, -1)
    return np.take(words.numpy().astype(np.uint32), place.numpy(), axis=1)


def _feistel(values: Words, keys: Words, low_bits: Words, high_bits: Words) -> Words:
    one = np.uint32(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    low, high = values & low_mask, values >> low_bits
    for place, key in enumerate(keys):
        if place % 2 == 0:
            high ^= _hash(low, key) & high_mask
        else:
            low ^= _hash(high, key) & low_mask
    return high << low_bits | low


def _hash(half: Words, key: Words) -> Words:
    """Hash a half of the bits with a key word to a word."""
    word = half ^ key
    for multiplier in MULTIPLIERS:
        word ^= word >> np.uint32(16)
        word *= np.uint32(multiplier)
    word ^= word >> np.uint32(16)
    return word
