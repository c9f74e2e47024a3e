"""Statistics of a partition: sizes, and how far labels of clients are from those of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array, Int64, as_labels
from .partition import Partition


@dataclass(frozen=True)
class Statistics:
    """Statistics of a partition.

    Attributes:
        clients: Number of clients.
        owned: Samples that a client owns.
        samples: Samples of the data set.
        sizes: Samples of each client, int64 [clients].
        classes: Labels that occur among owned samples, or None without labels.
        labels_each: Labels of each client, int64 [clients], or None.
        skew: Of each client, the share of its samples that would need another label for its distribution to be that of
            all owned samples (total variation, 0 to 1), [clients], or None.
    """

    clients: int
    owned: int
    samples: int
    sizes: Int64
    classes: int | None
    labels_each: Int64 | None
    skew: Array | None

    def lines(self) -> list[str]:
        """Return one line of text for each."""
        unowned = self.samples - self.owned
        left = f", {unowned:,} of nobody" if unowned else ""
        lines = [f"clients   {self.clients:,}", f"samples   {self.owned:,} of {self.samples:,}{left}"]
        lines += [
            f"size      {_summary(self.sizes)}, mean {self.sizes.mean():.1f}",
            f"deciles   {_deciles(self.sizes)}",
        ]
        if self.labels_each is not None and self.skew is not None:
            lines.append(f"labels    {_summary(self.labels_each)}, of {self.classes}")
            skew = f"{np.median(self.skew):.3f}, mean {self.skew.mean():.3f}, max {self.skew.max():.3f}"
            lines.append(f"skew      median {skew} (0: as all samples, 1: no label in common)")
        return lines


def statistics(parts: Partition, samples: int, labels: Any = None) -> Statistics:
    """Compute the statistics of a partition, at a cost of its samples, whatever the number of clients and labels.

    Args:
        parts: The partition.
        samples: Number of samples of the data set.
        labels: Its labels [samples], integers, or None.
    """
    sizes = parts.sizes
    if labels is None:
        return Statistics(parts.clients, len(parts.indices), samples, sizes, None, None, None)
    present, numbers = np.unique(as_labels(labels)[parts.indices], return_inverse=True)
    owners = np.repeat(np.arange(parts.clients), sizes)
    pairs, counts = np.unique(owners * len(present) + numbers, return_counts=True)
    client, label = pairs // len(present), pairs % len(present)
    overall = np.bincount(numbers, minlength=len(present)) / len(numbers)
    shared = np.minimum(counts / sizes[client], overall[label])
    skew = 1 - np.bincount(client, weights=shared, minlength=parts.clients)
    labels_each = np.bincount(client, minlength=parts.clients)
    return Statistics(parts.clients, len(parts.indices), samples, sizes, len(present), labels_each, skew.clip(0, 1))


def _summary(values: Int64) -> str:
    return f"min {values.min():,}, median {np.median(values):,g}, max {values.max():,}"


def _deciles(values: Int64) -> str:
    return " ".join(f"{value:,.0f}" for value in np.quantile(values, np.arange(1, 10) / 10))
