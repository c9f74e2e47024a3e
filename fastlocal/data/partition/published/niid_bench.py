"""Partitions as NIID-Bench makes them (Li et al. 2022; Xtra-Computing/NIID-Bench, utils.py partition_data).

Its experiments.py seeds numpy's global generator and Python's with --init_seed right before. Classes are 0 to the
largest label. Each list is in the source's order.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from ..arguments import HOPELESS, check_arguments, describe, refuse_small
from ..arrays import as_labels
from ..partition import Partition

SOURCE = "niid-bench"
MAX_DRAWS = 1000
"""The source repeats its draws without end."""


def iid(samples: int, *, clients: int, seed: int = 0) -> Partition:
    """Cut a random permutation into equal shares: its "homo"."""
    check_arguments(samples, clients, 1)
    order = np.random.RandomState(seed).permutation(samples)
    return Partition.from_lists(np.array_split(order, clients), None, describe("iid", seed, samples, source=SOURCE))


def dirichlet(labels: Any, *, clients: int, alpha: float = 0.5, seed: int = 0, min_client_size: int = 10) -> Partition:
    """Cut each shuffled class by Dir(alpha): its "noniid-labeldir".

    A client that has its average share already gets no more of the next classes.

    Args:
        labels: Integers [n].
        clients: n_parties.
        alpha: Its beta.
        seed: Its init_seed.
        min_client_size: Least number of samples; 10 in the source.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, min_client_size, alpha)
    generator = np.random.RandomState(seed)
    average = len(labels) / clients
    for draw in range(1, MAX_DRAWS + 1):
        lists: list[list[int]] = [[] for _ in range(clients)]
        for label in range(int(labels.max()) + 1):
            samples = np.flatnonzero(labels == label)
            generator.shuffle(samples)
            shares = generator.dirichlet(np.full(clients, alpha))
            shares = shares * np.array([len(own) < average for own in lists])
            if not shares.sum() > 0:
                raise UsageError(
                    f"--alpha {alpha}: no client takes class {label}; NIID-Bench's procedure ends here too"
                )
            cuts = (np.cumsum(shares / shares.sum()) * len(samples)).astype(int)[:-1]
            for own, part in zip(lists, np.split(samples, cuts), strict=True):
                own.extend(part.tolist())
        sizes = np.array([len(own) for own in lists])
        short = int(np.count_nonzero(sizes < min_client_size))
        if not short:
            break
        if short > HOPELESS or draw == MAX_DRAWS:
            refuse_small(sizes, min_client_size, "dirichlet", draw)
    for own in lists:
        generator.shuffle(own)
    meta = describe("dirichlet", seed, len(labels), labels, source=SOURCE, alpha=alpha, min_client_size=min_client_size)
    return Partition.from_lists(lists, None, meta)


def classes(labels: Any, *, clients: int, classes_per_client: int = 2, seed: int = 0) -> Partition:
    """Give client c class c mod C and random others: its "noniid-#labelK".

    Args:
        labels: Integers [n].
        clients: n_parties.
        classes_per_client: Its K.
        seed: Its init_seed, of numpy's generator and of Python's.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, 1)
    count = int(labels.max()) + 1
    if not 1 <= classes_per_client <= count:
        raise UsageError(f"--classes-per-client {classes_per_client}: must be from 1 to the {count} classes")
    generator, pick = np.random.RandomState(seed), random.Random(seed)
    held: list[set[int]] = []
    for client in range(clients):
        own = {client % count}
        # with all classes the source draws none
        while len(own) < classes_per_client:
            own = own | {pick.randint(0, count - 1)} if classes_per_client < count else set(range(count))
        held.append(own)
    lists: list[list[int]] = [[] for _ in range(clients)]
    for label in range(count):
        samples = np.flatnonzero(labels == label)
        generator.shuffle(samples)
        members = [client for client, own in enumerate(held) if label in own]
        if not members:
            raise UsageError(
                f"--partition-as niid-bench: none of {clients} clients has class {label}; take more clients"
            )
        for client, part in zip(members, np.array_split(samples, len(members)), strict=True):
            lists[client].extend(part.tolist())
    meta = describe("classes", seed, len(labels), labels, source=SOURCE, classes_per_client=classes_per_client)
    return Partition.from_lists(lists, None, meta)


def quantity(samples: int, *, clients: int, alpha: float = 0.5, seed: int = 0, min_client_size: int = 10) -> Partition:
    """Cut a random permutation by one Dir(alpha): its "iid-diff-quantity".

    Args:
        samples: Number of samples of the data set.
        clients: n_parties.
        alpha: Its beta.
        seed: Its init_seed.
        min_client_size: Least expected number of samples; 10 in the source.
    """
    check_arguments(samples, clients, min_client_size, alpha)
    generator = np.random.RandomState(seed)
    order = generator.permutation(samples)
    for draw in range(1, MAX_DRAWS + 1):
        shares = generator.dirichlet(np.full(clients, alpha))
        shares = shares / shares.sum()
        short = int(np.count_nonzero(shares * samples < min_client_size))
        if not short:
            break
        if short > HOPELESS or draw == MAX_DRAWS:
            refuse_small(shares * samples, min_client_size, "quantity", draw)
    cuts = (np.cumsum(shares) * samples).astype(int)[:-1]
    meta = describe("quantity", seed, samples, source=SOURCE, alpha=alpha, min_client_size=min_client_size)
    return Partition.from_lists(np.split(order, cuts), None, meta)
