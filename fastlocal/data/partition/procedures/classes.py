"""A fixed number of classes for each client."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from ..arguments import check_arguments, class_lists, describe, even_sizes
from ..arrays import Array, Int64, as_labels, stable_order
from ..checks import check_sizes
from ..partition import Partition

BLOCK_VALUES = 1 << 22
"""Values of a block of clients x classes that is drawn at a time."""


def classes(
    labels: Any, *, clients: int, classes_per_client: int = 2, seed: int = 0, min_client_size: int = 1
) -> Partition:
    """Give each client a fixed number of classes, and split each class evenly among its owners (Li et al. 2022).

    Client c has class c mod C and other classes at random. Classes that no client has are owned by nobody, which needs
    fewer clients than classes.

    Args:
        labels: Integers [n], array or tensor.
        clients: Number of clients.
        classes_per_client: Classes of each client, at most those that occur.
        seed: Seed of all draws.
        min_client_size: Least number of samples of a client.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, min_client_size)
    generator, lists = np.random.default_rng(seed), class_lists(labels)
    if not 1 <= classes_per_client <= len(lists):
        raise UsageError(f"--classes-per-client {classes_per_client}: must be from 1 to the {len(lists)} classes")
    held = _draw_classes(generator, clients, len(lists), classes_per_client)
    owners = np.full(len(labels), -1, np.int64)
    order = stable_order(held.ravel())
    bounds = np.searchsorted(held.ravel()[order], np.arange(len(lists) + 1))
    for number, samples in enumerate(lists):
        members = order[bounds[number] : bounds[number + 1]] // classes_per_client
        if len(members):
            owners[generator.permutation(samples)] = np.repeat(members, even_sizes(len(samples), len(members)))
    meta = describe("classes", seed, len(labels), labels, classes_per_client=classes_per_client)
    parts = Partition.from_owners(owners, clients, None, meta)
    check_sizes(parts, min_client_size, "--partition classes", "take fewer clients or more --classes-per-client")
    return parts


def _draw_classes(generator: np.random.Generator, clients: int, count: int, each: int) -> Int64:
    """Draw the classes of each client, [clients, each]: its number mod `count`, then others without replacement."""
    first = np.arange(clients) % count
    if each == 1:
        return first[:, None]
    rows = max(1, BLOCK_VALUES // count)
    others: list[Array] = []
    for start in range(0, clients, rows):
        keys = generator.random((len(first[start : start + rows]), count - 1))
        others.append(np.argpartition(keys, each - 2, axis=1)[:, : each - 1])
    steps = np.concatenate(others) + 1  # distances to the first class
    return np.concatenate([first[:, None], (first[:, None] + steps) % count], axis=1)
