"""Checks of the arguments of procedures, and the record of them in a partition's meta."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from .arrays import Array, Int64, label_checksum, stable_order

MAX_DRAWS = 100
"""Draws after which a least size is given up."""
HOPELESS = 30
"""Clients below the least size in one draw; with so many on average, one draw in e^30 has none."""


def check_arguments(samples: int, clients: int, least: int, alpha: float | None = None) -> None:
    """Raise UsageError for values that no procedure can take."""
    if least < 1:
        raise UsageError(f"--min-client-size {least}: must be at least 1")
    if clients < 1:
        raise UsageError(f"{clients} clients: at least 1 is needed")
    if clients * least > samples:
        raise UsageError(f"{clients} clients with at least {least} samples each need {clients * least}, of {samples}")
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f"--alpha {alpha}: must be a number above 0")


def describe(
    procedure: str, seed: int | None, samples: int, labels: Any = None, *, source: str | None = None, **parameters: Any
) -> dict[str, Any]:
    """Return the meta of a Partition."""
    meta = {"procedure": procedure, "as": source, "parameters": parameters, "seed": seed, "samples": samples}
    return {**meta, "checksum": label_checksum(labels)}


def class_lists(labels: Int64) -> list[Int64]:
    """Return the sample numbers of each label that occurs, ascending in both."""
    order = stable_order(labels)
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, starts)


def even_sizes(total: int, parts: int) -> Int64:
    """Return sizes [parts] that differ by one at most, larger ones first, as numpy.array_split."""
    return total // parts + (np.arange(parts) < total % parts).astype(np.int64)


def refuse_small(sizes: Array, least: int, procedure: str, draws: int) -> None:
    """Raise UsageError because draws leave clients too small."""
    short = int(np.count_nonzero(sizes < least))
    raise UsageError(
        f"--partition {procedure}: {short} of {len(sizes)} clients have fewer than --min-client-size {least} samples "
        f"after {draws} draws; take fewer clients or a larger --alpha, or --partition dirichlet-client"
    )
