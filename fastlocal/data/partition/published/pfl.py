"""Partitions as pfl-research makes them (pfl 0.6, pfl/data/partition.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from ..arguments import check_arguments, class_lists, describe
from ..arrays import as_labels
from ..partition import Partition

SOURCE = "pfl"
FAILS, SPREAD = 20, 0.02
"""Draws for each sample of a client after which its classes are evened out, and how far."""


def dirichlet_client(labels: Any, *, clients: int, alpha: float = 0.1, seed: int = 0) -> Partition:
    """Draw one client after the other by its own Dir(alpha), as partition_by_dirichlet_class_distribution does.

    Every client has n // clients samples, as by `lambda: n // clients`; the first `clients` users are kept, and the
    samples left over are dropped. A class gives its last samples first. The source draws from numpy's global generator.

    Args:
        labels: Integers [n], 0 to classes - 1, each of which occurs.
        clients: Number of clients.
        alpha: Concentration.
        seed: Seed of numpy's global generator.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, 1, alpha)
    lists = [samples.tolist() for samples in class_lists(labels)]
    if [int(labels[samples[0]]) for samples in lists] != list(range(len(lists))):
        raise UsageError("--partition-as pfl: dirichlet-client needs labels that count from 0 without gaps")
    generator, size = np.random.RandomState(seed), len(labels) // clients
    owned: list[list[int]] = []
    for _ in range(clients):
        prior = generator.dirichlet([alpha] * len(lists))
        bounds = np.cumsum(prior)
        bounds[-1] = 1.0
        own: list[int] = []
        draws = 0
        while len(own) < size:
            draws += 1
            label = int(np.argmax(generator.uniform() < bounds))
            if lists[label]:
                own.append(lists[label].pop())
            if draws % (size * FAILS) == 0:
                prior += SPREAD
                prior /= sum(prior)
                bounds = np.cumsum(prior)
                # the source sets the last prior here, not the last bound
                prior[-1] = 1.0
        owned.append(own)
    meta = describe("dirichlet-client", seed, len(labels), labels, source=SOURCE, alpha=alpha)
    return Partition.from_lists(owned, None, meta)
