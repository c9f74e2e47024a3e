"""Draws of `philox.py` inside Triton kernels: the same words for the same arguments."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .philox import MASK32


@triton.jit
def draw(seed_low, seed_high, PURPOSE: tl.constexpr, client, step, position):
    """Draw four random words.

    Args:
        seed_low: uint32, from `seed_words`.
        seed_high: uint32, from `seed_words`.
        PURPOSE: A Purpose.
        client: Integer or block; the lower 32 bits count.
        step: Integer or block; the lower 32 bits count.
        position: Integer or block; the lower 32 bits count.
    """
    zero = position.to(tl.uint32) * 0
    return tl.philox_impl(
        zero + position.to(tl.uint32),
        zero + client.to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + PURPOSE,
        seed_low.to(tl.uint32),
        seed_high.to(tl.uint32),
    )


@triton.jit
def below(word, bound):
    """Map a word to an integer in [0, bound), bound at most 2^31."""
    return tl.umulhi(word, (word * 0 + bound).to(tl.uint32)).to(tl.int32)


@triton.jit
def key_words(seed_ptr, place, seed_low, seed_high):
    """Return the words of the seed at `place` of seed_ptr, int64; or the given words if seed_ptr is None."""
    if seed_ptr is None:
        return seed_low, seed_high
    else:
        seed = tl.load(seed_ptr + place)
        return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


def seed_words(seed: Tensor | int) -> tuple[int, int]:
    """Return the two words of the key, low and high; zeros for a tensor, whose words the kernel loads."""
    return (0, 0) if isinstance(seed, Tensor) else (seed & MASK32, (seed >> 32) & MASK32)
