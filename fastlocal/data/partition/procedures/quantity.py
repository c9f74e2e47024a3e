"""Unequal sizes, alike in their labels."""

from __future__ import annotations

import numpy as np

from ..arguments import check_arguments, describe
from ..arrays import offsets_of
from ..partition import Partition


def quantity(samples: int, *, clients: int, alpha: float = 0.5, seed: int = 0, min_client_size: int = 1) -> Partition:
    """Cut a random permutation by one Dirichlet distribution over the clients (Li et al. 2022).

    Every client first has the least size; the rest is cut by Dir(alpha 1_clients). So no draw is repeated, for any
    number of clients.

    Args:
        samples: Number of samples of the data set.
        clients: Number of clients.
        alpha: Concentration: sizes are alike as it grows. 0.5 is that of NIID-Bench.
        seed: Seed of all draws.
        min_client_size: Least number of samples of a client.
    """
    check_arguments(samples, clients, min_client_size, alpha)
    generator = np.random.default_rng(seed)
    indices, shares = generator.permutation(samples), generator.dirichlet(np.full(clients, alpha))
    rest = samples - clients * min_client_size
    cuts = (np.cumsum(shares) * rest).astype(np.int64)
    cuts[-1] = rest
    sizes = np.diff(cuts, prepend=0) + min_client_size
    meta = describe("quantity", seed, samples, alpha=alpha, min_client_size=min_client_size)
    return Partition(indices, offsets_of(sizes), None, meta)
