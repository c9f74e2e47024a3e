"""The partition that a data set brings: each sample names its client."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError

from .arguments import describe
from .partition import Partition


def natural(client_of: Any, labels: Any = None) -> Partition:
    """Make the partition by the name of each sample's client; clients are sorted, numbers by value.

    Args:
        client_of: Integers or texts [n], the client of each sample.
        labels: Labels [n] for the checksum, or None.
    """
    values = np.asarray(client_of)
    if values.ndim != 1 or values.dtype.kind not in "iuU" or len(values) == 0:
        raise UsageError(f"clients: are {values.dtype} of shape {values.shape}; integers or texts [n] are expected")
    names, owners = np.unique(values, return_inverse=True)
    numbered = names.dtype.kind in "iu" and names[0] == 0 and names[-1] == len(names) - 1
    meta = describe("natural", None, len(values), labels)
    return Partition.from_owners(owners, len(names), None if numbered else tuple(map(str, names.tolist())), meta)
