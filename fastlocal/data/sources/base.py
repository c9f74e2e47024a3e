"""What every source of batches offers: samples by number, at once or in an order that is known beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One local step's samples of the resident clients.

    inputs: [clients, batch, ...]        targets: [clients, batch, ...]
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class BatchRequest:
    """A batch to come.

    sample_ids: int64 [..., batch]        clients: int64 [...] whose augmentation it gets; None: as evaluation sees it
    step: global local step, a number or int64 [...]        key: what the one who asks for it knows it by
    """

    sample_ids: Tensor
    clients: Tensor | None
    step: Tensor | int
    key: object = None


class Source(Protocol):
    """Delivers batches on its device. Any thread may call it, several at once.

    Attributes:
        resident: Whether all samples are on the device, where a step can gather them by itself.
        index_device: Where sample numbers are wanted.
    """

    resident: bool

    device: torch.device
    dtype: torch.dtype
    index_device: torch.device

    def __len__(self) -> int: ...

    def batch_bytes(self, batch: int) -> int:
        """Size of the inputs of one batch of this many samples."""
        ...

    def batch(self, sample_ids: Tensor, clients: Tensor, step: Tensor | int) -> Batch:
        """The training samples `sample_ids` [clients, batch] of the clients [clients] at a global local step.

        step: one for all, or int64 [clients]
        """
        ...

    def feed(self, wanted: Iterable[BatchRequest]) -> Iterator[Batch]:
        """These batches one after the other, read ahead where the source decodes."""
        ...

    def read_range(self, begin: int, end: int) -> Batch:
        """Samples [begin, end) in their stored order, not augmented, without a client axis."""
        ...

    def pop_wait_seconds(self) -> float:
        """Seconds that callers have waited for data since the last call."""
        ...

    def pop_messages(self) -> list[str]:
        """Lines that a person should see, since the last call."""
        ...

    def close(self) -> None:
        """Ends threads and processes; nothing can be read afterwards."""
        ...
