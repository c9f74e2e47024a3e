"""Partitions as the partitioners of Flower Datasets (flwr-datasets 0.6) make them.

Sample numbers are those of the data set that the partitioner sees: FederatedDataset shuffles every split by seed 42
before it partitions, which is not done here. Each list is in Flower's order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from ..arguments import check_arguments, class_lists, describe, even_sizes, refuse_small
from ..arrays import as_labels, offsets_of, stable_order
from ..partition import Partition

SOURCE = "flower"
MAX_DRAWS = 11
"""The first draw and the ten repetitions of DirichletPartitioner."""


def iid(samples: int, *, clients: int, seed: int = 42) -> Partition:
    """Cut the samples in their order into equal shares, as IidPartitioner does; `seed` is not used."""
    check_arguments(samples, clients, 1)
    meta = describe("iid", seed, samples, source=SOURCE)
    return Partition(np.arange(samples), offsets_of(even_sizes(samples, clients)), None, meta)


def dirichlet(labels: Any, *, clients: int, alpha: float = 0.5, seed: int = 42, min_client_size: int = 10) -> Partition:
    """Cut each class by Dir(alpha), as DirichletPartitioner does without self-balancing.

    Samples of a class are not shuffled before they are cut. The clients' lists are shuffled at the end.

    Args:
        labels: Integers [n].
        clients: num_partitions.
        alpha: Concentration.
        seed: Seed of the one generator.
        min_client_size: min_partition_size; after ten repetitions the partitioner gives up.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, min_client_size, alpha)
    generator = np.random.default_rng(seed)
    for draw in range(1, MAX_DRAWS + 1):
        lists: list[list[int]] = [[] for _ in range(clients)]
        for samples in class_lists(labels):
            shares = generator.dirichlet(np.full(clients, float(alpha)))
            cuts = (np.cumsum(shares) * len(samples)).astype(int)[:-1]
            for own, part in zip(lists, np.split(samples, cuts), strict=True):
                own.extend(part.tolist())
        sizes = np.array([len(own) for own in lists])
        if sizes.min() >= min_client_size:
            break
        if draw == MAX_DRAWS:
            refuse_small(sizes, min_client_size, "dirichlet", draw)
    meta = describe("dirichlet", seed, len(labels), labels, source=SOURCE, alpha=alpha, min_client_size=min_client_size)
    return _shuffled(lists, generator, meta)


def dirichlet_client(labels: Any, *, clients: int, alpha: float = 0.5, seed: int = 42) -> Partition:
    """Draw one sample at a time for a random client by its own Dir(alpha), as InnerDirichletPartitioner does.

    The partitioner takes the sizes of the clients; here they differ by one at most.

    Args:
        labels: Integers [n], 0 to classes - 1, each of which occurs.
        clients: Number of clients.
        alpha: Concentration.
        seed: Seed of the one generator.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, 1, alpha)
    lists = class_lists(labels)
    if [int(labels[samples[0]]) for samples in lists] != list(range(len(lists))):
        raise UsageError("--partition-as flower: dirichlet-client needs labels that count from 0 without gaps")
    generator = np.random.default_rng(seed)
    sizes = even_sizes(len(labels), clients)
    priors = generator.dirichlet(np.full(len(lists), float(alpha)), size=clients)
    left, missing = [len(samples) for samples in lists], sizes.tolist()
    owned = [[0] * size for size in missing]
    open_clients = list(range(clients))
    total = len(labels)
    while total:
        place = int(generator.integers(0, len(open_clients)))
        client = open_clients[place]
        if missing[client] == 0:
            open_clients.pop(place)
            continue
        missing[client] -= 1
        total -= 1
        while True:
            label = int(generator.choice(len(lists), p=priors[client]))
            if left[label]:
                break
            priors[:, label] = 0
            sums = priors.sum(axis=1, keepdims=True)
            if (sums == 0).any():
                raise UsageError(f"--alpha {alpha}: a client has no class left; Flower's procedure ends here too")
            priors = priors / sums
        left[label] -= 1
        owned[client][missing[client]] = int(lists[label][left[label]])
    meta = describe("dirichlet-client", seed, len(labels), labels, source=SOURCE, alpha=alpha)
    return _shuffled(owned, generator, meta)


def shards(labels: Any, *, clients: int, shards_per_client: int = 2, seed: int = 42) -> Partition:
    """Deal shards of one size, as ShardPartitioner does with num_shards_per_partition; samples left over are dropped.

    Args:
        labels: Integers [n].
        clients: num_partitions.
        shards_per_client: num_shards_per_partition.
        seed: Seed of the one generator.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, max(1, shards_per_client))
    if shards_per_client < 1:
        raise UsageError(f"--shards-per-client {shards_per_client}: must be at least 1")
    generator, order = np.random.default_rng(seed), stable_order(labels)
    size = len(labels) // (clients * shards_per_client)
    dealt = generator.permutation(len(labels) // size)[: clients * shards_per_client]
    positions = dealt[:, None] * size + np.arange(size)
    lists = positions.reshape(clients, -1).tolist()
    for own in lists:
        generator.shuffle(own)
    meta = describe("shards", seed, len(labels), labels, source=SOURCE, shards_per_client=shards_per_client)
    return Partition.from_lists([order[own] for own in lists], None, meta)


def classes(labels: Any, *, clients: int, classes_per_client: int = 2, seed: int = 42) -> Partition:
    """Draw the classes of each client, as PathologicalPartitioner does in its mode "random".

    Args:
        labels: Integers [n].
        clients: num_partitions.
        classes_per_client: num_classes_per_partition.
        seed: Seed of the one generator.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, 1)
    lists = class_lists(labels)
    if not 1 <= classes_per_client <= len(lists):
        raise UsageError(f"--classes-per-client {classes_per_client}: must be from 1 to the {len(lists)} classes")
    generator = np.random.default_rng(seed)
    held = [generator.choice(len(lists), size=classes_per_client, replace=False) for _ in range(clients)]
    owned: list[list[int]] = [[] for _ in range(clients)]
    for number, samples in enumerate(lists):
        members = [client for client, own in enumerate(held) if number in own]
        if len(members) > len(samples):
            raise UsageError(
                f"--classes-per-client {classes_per_client}: {len(members)} clients share the {len(samples)} samples "
                f"of class {labels[samples[0]]}; take fewer clients"
            )
        for client, part in zip(members, np.array_split(samples, max(1, len(members))), strict=False):
            owned[client].extend(part.tolist())
    meta = describe("classes", seed, len(labels), labels, source=SOURCE, classes_per_client=classes_per_client)
    return _shuffled(owned, generator, meta)


def _shuffled(lists: list[list[int]], generator: np.random.Generator, meta: dict[str, Any]) -> Partition:
    """Shuffle each client's list by `generator`; numpy draws other numbers for a list than for an array."""
    for own in lists:
        generator.shuffle(own)
    return Partition.from_lists(lists, None, meta)
