"""Each client's classes from its own Dirichlet distribution over the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arguments import check_arguments, class_lists, describe, even_sizes
from ..arrays import Array, Int64, as_labels
from ..partition import Partition

BLOCK_VALUES = 1 << 22
"""Values of a block of clients x classes that is drawn at a time."""


def dirichlet_client(
    labels: Any, *, clients: int, alpha: float = 0.1, seed: int = 0, min_client_size: int = 1
) -> Partition:
    """Draw each client's samples class by class from its own Dirichlet distribution (Hsu et al. 2019).

        q_c ~ Dir(alpha 1_classes); each sample of client c: a class by q_c, then one of its samples that are left

    A class without samples left is taken out of all q, which are normalized again. Sizes differ by one at most, all
    samples are owned, and the last clients get what the others left.

    Args:
        labels: Integers [n], array or tensor.
        clients: Number of clients.
        alpha: Concentration: clients are alike as it grows, and have one class as it falls to 0.
        seed: Seed of all draws.
        min_client_size: Least number of samples of a client.
    """
    labels = as_labels(labels)
    check_arguments(len(labels), clients, min_client_size, alpha)
    generator = np.random.default_rng(seed)
    classes = [generator.permutation(samples) for samples in class_lists(labels)]
    left = np.array([len(samples) for samples in classes])
    taken = np.zeros(len(classes), np.int64)
    sizes = even_sizes(len(labels), clients)
    owners = np.empty(len(labels), np.int64)
    rows = max(1, BLOCK_VALUES // len(classes))
    for start in range(0, clients, rows):
        counts = _draw_counts(generator, alpha, sizes[start : start + rows], left)
        for number, samples in enumerate(classes):
            of_class = counts[:, number]
            end = taken[number] + int(of_class.sum())
            owners[samples[taken[number] : end]] = np.repeat(np.arange(start, start + len(counts)), of_class)
            taken[number] = end
    meta = describe("dirichlet-client", seed, len(labels), labels, alpha=alpha, min_client_size=min_client_size)
    return Partition.from_owners(owners, clients, None, meta)


def _draw_counts(generator: np.random.Generator, alpha: float, sizes: Int64, left: Int64) -> Int64:
    """Draw how many samples of each class each client takes, client after client.

    The clients up to the one that exhausts a class are drawn at once; there are as many passes as classes at most.

    Args:
        generator: Source of all draws.
        alpha: Concentration.
        sizes: Samples of each client, [clients].
        left: Samples left of each class, [classes]; lowered in place.

    Returns:
        int64 [clients, classes].
    """
    priors = generator.dirichlet(np.full(len(left), alpha), size=len(sizes))
    counts = np.zeros(priors.shape, np.int64)
    first = 0
    while first < len(sizes):
        drawn = generator.multinomial(sizes[first:], _normalized(priors[first:], left))
        exceeds = np.asarray((np.cumsum(drawn, axis=0) > left).any(axis=1))
        served = int(exceeds.argmax()) if exceeds.any() else len(drawn)
        counts[first : first + served] = drawn[:served]
        left -= drawn[:served].sum(axis=0)
        first += served
        if first < len(sizes):  # this client exhausts a class
            counts[first] = _draw_one(generator, priors[first], int(sizes[first]), left)
            first += 1
    return counts


def _draw_one(generator: np.random.Generator, prior: Array, size: int, left: Int64) -> Int64:
    """Draw one client's counts [classes]: draws of an exhausted class are made again among the others."""
    counts = np.zeros(len(left), np.int64)
    while missing := size - int(counts.sum()):
        drawn = np.minimum(generator.multinomial(missing, _normalized(prior[None], left)[0]), left)
        counts += drawn
        left -= drawn
    return counts


def _normalized(priors: Array, left: Int64) -> Array:
    """Return `priors` [clients, classes] over the classes that are left; by what is left, where that has no weight."""
    weights = priors * (left > 0)
    sums = weights.sum(axis=1, keepdims=True)
    result = np.where(sums > 0, weights / np.where(sums > 0, sums, 1), left / left.sum())
    return np.asarray(result)
