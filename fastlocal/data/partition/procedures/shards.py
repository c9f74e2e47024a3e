"""Shards of the samples sorted by label."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from ..arguments import check_arguments, describe, even_sizes
from ..arrays import as_labels, stable_order
from ..checks import check_sizes
from ..partition import Partition


def shards(
    labels: Any, *, clients: int, shards_per_client: int = 2, seed: int = 0, min_client_size: int = 1
) -> Partition:
    """Sort the samples by label, cut them into shards, and deal these at random (McMahan et al. 2017).

    The sort is stable. Shards differ by one sample at most, so that all samples are owned.

    Args:
        labels: Integers [n], array or tensor.
        clients: Number of clients.
        shards_per_client: Shards of each client, hence about the most classes that it has. 2 is the paper's.
        seed: Seed of the deal.
        min_client_size: Least number of samples of a client.
    """
    labels = as_labels(labels)
    if shards_per_client < 1:
        raise UsageError(f"--shards-per-client {shards_per_client}: must be at least 1")
    check_arguments(len(labels), clients, min_client_size)
    count = clients * shards_per_client
    if count > len(labels):
        raise UsageError(f"--shards-per-client {shards_per_client}: {len(labels)} samples make no {count} shards")
    owner_of_shard = np.empty(count, np.int64)
    owner_of_shard[np.random.default_rng(seed).permutation(count)] = np.arange(count) // shards_per_client
    owners = np.empty(len(labels), np.int64)
    owners[stable_order(labels)] = np.repeat(owner_of_shard, even_sizes(len(labels), count))
    meta = describe("shards", seed, len(labels), labels, shards_per_client=shards_per_client)
    parts = Partition.from_owners(owners, clients, None, meta)
    check_sizes(parts, min_client_size, "--partition shards", "take fewer clients")
    return parts
