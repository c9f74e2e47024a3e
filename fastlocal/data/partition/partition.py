"""Which client owns which training samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Array, Int64, offsets_of, stable_order
from .checks import check, check_structure
from .files import load, save


@dataclass(frozen=True, eq=False)
class Partition:
    """Which client owns which training samples, as CSR arrays.

    Attributes:
        indices: int64 [owned], sample numbers, client after client.
        offsets: int64 [clients + 1]; client c owns indices[offsets[c] : offsets[c + 1]].
        client_ids: Names of the clients, or None for 0, 1, 2, ...
        meta: JSON values: procedure, parameters, seed, samples (size of the data set), and checksum of its labels
            (label_checksum) or None.
    """

    indices: Int64
    offsets: Int64
    client_ids: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_lists(
        cls,
        lists: Sequence[Sequence[int] | Array],
        client_ids: tuple[str, ...] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Partition:
        """Make a partition of one list of sample numbers a client."""
        parts = [np.asarray(part, dtype=np.int64) for part in lists]
        indices = np.concatenate([np.zeros(0, np.int64), *parts])
        return cls(indices, offsets_of(np.array([len(part) for part in parts], np.int64)), client_ids, meta or {})

    @classmethod
    def from_owners(
        cls,
        owners: Array,
        clients: int,
        client_ids: tuple[str, ...] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Partition:
        """Make a partition of the owner of each sample; the samples of a client ascend.

        Args:
            owners: Integers [samples]; -1 for a sample that nobody owns.
            clients: Number of clients.
            client_ids: Names of the clients, or None.
            meta: As of a Partition.
        """
        order = stable_order(owners)
        unowned = int(np.count_nonzero(owners < 0))
        sizes = np.bincount(owners[owners >= 0] if unowned else owners, minlength=clients)
        return cls(order[unowned:], offsets_of(sizes), client_ids, meta or {})

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int64:
        """Number of samples of each client, int64 [clients]."""
        return np.diff(self.offsets)

    def samples_of(self, client: int) -> Int64:
        """Return the sample numbers of a client, as a view."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def equals(self, other: Partition) -> bool:
        """Return True if the same clients own the same samples in the same order."""
        same = np.array_equal(self.indices, other.indices) and np.array_equal(self.offsets, other.offsets)
        return same and self.client_ids == other.client_ids

    def substitutes(self, samples: int) -> Int64:
        """Return the next sample of the same client for each of `samples` samples, int64 [samples].

        A client's last sample is followed by its first, one that nobody owns by the next in order.
        """
        following = (np.arange(samples) + 1) % max(samples, 1)
        after = np.roll(self.indices, -1)
        filled = self.sizes > 0
        after[self.offsets[1:][filled] - 1] = self.indices[self.offsets[:-1][filled]]
        following[self.indices] = after
        return following

    def without_small(self, least: int) -> Partition:
        """Return this partition without the clients that have fewer than `least` samples."""
        kept = self.sizes >= least
        names = None
        if self.client_ids is not None:
            names = tuple(name for name, keep in zip(self.client_ids, kept.tolist(), strict=True) if keep)
        elif not kept.all():
            names = tuple(map(str, np.flatnonzero(kept).tolist()))
        meta = {**self.meta, "parameters": {**self.meta.get("parameters", {}), "min_client_size": least}}
        return Partition(self.indices[np.repeat(kept, self.sizes)], offsets_of(self.sizes[kept]), names, meta)

    def name_of(self, client: int) -> str:
        """Return the name of a client, for messages."""
        return str(client) if self.client_ids is None else repr(self.client_ids[client])

    def check(self, samples: int, labels: Any = None, *, flag: str = "partition") -> None:
        """Raise UsageError unless this is a partition of a data set, and every client has a sample.

        Args:
            samples: Number of samples of the data set.
            labels: Its labels, to be compared with the checksum; None: not compared.
            flag: What the user gave, for messages, as "--partition parts.npz".
        """
        check(self, samples, labels, flag)

    def save(self, path: Path | str) -> None:
        """Write this partition to an .npz file, or to a .json file {client: [sample numbers]} without meta."""
        save(self, Path(path))

    @classmethod
    def load(cls, path: Path | str, *, samples: int | None = None, flag: str | None = None) -> Partition:
        """Read a partition that `save` or another program wrote; the suffix says .npz or .json.

        Args:
            path: The file.
            samples: Number of samples of the data set; a file that holds more is refused unread.
            flag: What the user gave, for messages; None: the path.

        Raises:
            UsageError: The file is missing, torn, or no partition.
        """
        parts = cls(*load(Path(path).expanduser(), samples, flag or str(path)))
        check_structure(parts, flag or str(path))
        return parts
