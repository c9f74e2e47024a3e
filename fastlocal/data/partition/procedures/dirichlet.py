"""Each class cut by its own Dirichlet distribution over the clients."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arguments import HOPELESS, MAX_DRAWS, check_arguments, class_lists, describe, refuse_small
from ..arrays import as_labels
from ..partition import Partition


def dirichlet(labels: Any, *, clients: int, alpha: float = 0.5, seed: int = 0, min_client_size: int = 1) -> Partition:
    """Cut each class by its own Dirichlet distribution over the clients (Yurochkin et al. 2019; Li et al. 2022).

        p_k ~ Dir(alpha 1_clients); client c gets the shuffled samples of class k from
        floor(n_k (p_k1 + ... + p_k,c-1)) to floor(n_k (p_k1 + ... + p_kc))

    Labels and sizes are skewed. The cuts are drawn again until every client has the least size.

    Args:
        labels: Integers [n], array or tensor.
        clients: Number of clients.
        alpha: Concentration: clients are alike as it grows, and have few classes as it falls; 0.5 in NIID-Bench.
        seed: Seed of all draws.
        min_client_size: Least number of samples of a client; published code takes 10.

    Raises:
        UsageError: An argument does not fit, or 100 draws leave a client too small.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, min_client_size, alpha)
    generator, classes = np.random.default_rng(seed), class_lists(labels)
    for draw in range(1, MAX_DRAWS + 1):
        owners, sizes = np.empty(len(labels), np.int64), np.zeros(clients, np.int64)
        for samples in classes:
            shares = generator.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares) * len(samples)).astype(np.int64)
            cuts[-1] = len(samples)
            counts = np.diff(cuts, prepend=0)
            owners[generator.permutation(samples)] = np.repeat(np.arange(clients), counts)
            sizes += counts
        short = int(np.count_nonzero(sizes < min_client_size))
        if not short:
            break
        if short > HOPELESS or draw == MAX_DRAWS:
            refuse_small(sizes, min_client_size, "dirichlet", draw)
    meta = describe("dirichlet", seed, len(labels), labels, alpha=alpha, min_client_size=min_client_size)
    return Partition.from_owners(owners, clients, None, meta)
