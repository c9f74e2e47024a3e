"""Samples of each client that are held out for its evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fastlocal.kernels.philox import Purpose

from ..schedule import keyed_permutation
from .partition import Partition
from .partition.arrays import Int64, offsets_of

BLOCK = 2**18
"""Samples whose places are drawn at a time; each takes 24 words of keys."""


def hold_out(partition: Partition, fraction: float, seed: int) -> Partition:
    """Draw the held-out samples of each client, a pure function of the partition, the fraction and the seed.

    Of n samples round(fraction * n) are drawn, halves rounded up, but at most n - 1: those at the first places of a
    permutation that is keyed by the seed and the client.

    Args:
        partition: Samples of each client.
        fraction: In [0, 1).
        seed: Seed of the run.

    Returns:
        The held-out samples of each client, in the partition's order; a client may have none.
    """
    sizes = partition.sizes
    counts = np.minimum(np.floor(fraction * sizes + 0.5).astype(np.int64), sizes - 1)
    chosen = np.zeros(len(partition.indices), dtype=bool)
    for clients, places in _blocks(counts):
        keys, zero = torch.from_numpy(clients), torch.tensor(0)
        drawn = keyed_permutation.permute(
            seed, Purpose.CLIENT_TEST, keys, zero, torch.from_numpy(sizes[clients]), torch.from_numpy(places)
        )
        chosen[partition.offsets[clients] + drawn.numpy()] = True
    meta = {"held_out": fraction, "seed": seed, "samples": partition.meta.get("samples")}
    return Partition(partition.indices[chosen], offsets_of(counts), partition.client_ids, meta)


def without(partition: Partition, held_out: Partition) -> Partition:
    """Return the partition without the held-out samples."""
    kept = ~np.isin(partition.indices, held_out.indices)
    return Partition(
        partition.indices[kept], offsets_of(kept)[partition.offsets], partition.client_ids, partition.meta
    )


def _blocks(counts: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Yield (clients, places) of all held-out samples, int64 [at most BLOCK] each."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, BLOCK):
        numbers = np.arange(begin, min(begin + BLOCK, total))
        clients = np.searchsorted(ends, numbers, side="right")
        yield clients, numbers - (ends - counts)[clients]
