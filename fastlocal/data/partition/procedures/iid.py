"""Equal shares of a random permutation."""

from __future__ import annotations

import numpy as np

from ..arguments import check_arguments, describe, even_sizes
from ..arrays import offsets_of
from ..partition import Partition


def iid(samples: int, *, clients: int, seed: int = 0, min_client_size: int = 1) -> Partition:
    """Deal a random permutation of all samples in equal shares; sizes differ by one at most.

    Args:
        samples: Number of samples of the data set.
        clients: Number of clients.
        seed: Seed of the permutation.
        min_client_size: Least number of samples of a client.
    """
    check_arguments(samples, clients, min_client_size)
    indices = np.random.default_rng(seed).permutation(samples)
    return Partition(indices, offsets_of(even_sizes(samples, clients)), None, describe("iid", seed, samples))
