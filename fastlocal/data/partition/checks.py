"""Checks of a partition against a data set, each with one line for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlocal.common.errors import UsageError

from .arrays import label_checksum

if TYPE_CHECKING:
    from .partition import Partition


def check(parts: Partition, samples: int, labels: Any, flag: str) -> None:
    """Raise UsageError unless `parts` is a partition of these samples without empty clients; see Partition.check."""
    check_structure(parts, flag)
    indices, stored, made_of = parts.indices, parts.meta.get("checksum"), parts.meta.get("samples")
    if made_of is not None and made_of != samples:
        raise UsageError(f"{flag}: was made of {made_of} training samples, and here are {samples}; partition this data")
    if stored is not None and labels is not None and stored != label_checksum(labels):
        raise UsageError(f"{flag}: was made of another data set (the checksum of its labels differs); partition this")
    if len(indices):
        if indices.min() < 0 or indices.max() >= samples:
            at = int(((indices < 0) | (indices >= samples)).argmax())
            raise UsageError(
                f"{flag}: client {_owner(parts, at)} has sample {indices[at]}, which does not exist; "
                f"the training samples are 0 to {samples - 1}"
            )
        owned = np.zeros(samples, dtype=bool)
        owned[indices] = True
        if np.count_nonzero(owned) < len(indices):
            sample = int((np.bincount(indices) > 1).argmax())
            first, second = np.flatnonzero(indices == sample)[:2]
            a, b = _owner(parts, first), _owner(parts, second)
            whose = f"twice by client {a}" if a == b else f"by clients {a} and {b}"
            raise UsageError(f"{flag}: sample {sample} is owned {whose}; a sample has one owner at most")
    empty = parts.sizes == 0
    if empty.any():
        others = f" and {int(empty.sum()) - 1} more" if empty.sum() > 1 else ""
        name = parts.name_of(int(empty.argmax()))
        raise UsageError(f"{flag}: client {name}{others} of {parts.clients} has no samples; leave such clients out")


def check_structure(parts: Partition, flag: str) -> None:
    """Raise UsageError unless the arrays are CSR of at least one client."""
    indices, offsets = parts.indices, parts.offsets
    for name, array in (("indices", indices), ("offsets", offsets)):
        if array.ndim != 1 or array.dtype != np.int64:
            raise UsageError(f"{flag}: {name} is {array.dtype} of shape {array.shape}; int64 [n] is expected")
    if len(offsets) < 2:
        raise UsageError(f"{flag}: has no clients")
    if offsets[0] != 0 or offsets[-1] != len(indices) or (np.diff(offsets) < 0).any():
        raise UsageError(f"{flag}: its offsets do not ascend from 0 to its {len(indices)} indices")
    if parts.client_ids is not None and len(parts.client_ids) != parts.clients:
        raise UsageError(f"{flag}: has {len(parts.client_ids)} names for {parts.clients} clients")
    if parts.client_ids is not None and len(set(parts.client_ids)) < parts.clients:
        raise UsageError(f"{flag}: two clients have one name")


def check_sizes(parts: Partition, least: int, flag: str, remedy: str) -> None:
    """Raise UsageError if a client has fewer than `least` samples."""
    sizes = parts.sizes
    if len(sizes) and sizes.min() < least:
        client = int(sizes.argmin())
        raise UsageError(
            f"{flag}: client {parts.name_of(client)} has {sizes[client]} samples, fewer than "
            f"--min-client-size {least}; {remedy}"
        )


def _owner(parts: Partition, position: int) -> str:
    """Return the name of the client that owns a position of `indices`."""
    return parts.name_of(int(np.searchsorted(parts.offsets, position, side="right")) - 1)
