"""Interface of all sources of batches: random access, feeds in a known order, and ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of the resident clients for one local step.

    Attributes:
        inputs: [clients, batch, ...].
        targets: [clients, batch, ...].
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class BatchRequest:
    """Request for a batch.

    Attributes:
        sample_ids: int64 [..., batch].
        clients: int64 [...], whose augmentation applies; None: no augmentation, as in evaluation.
        step: Global local step, a number or int64 [...].
        key: The caller's identifier of the batch.
    """

    sample_ids: Tensor
    clients: Tensor | None
    step: Tensor | int
    key: object = None


class Source(Protocol):
    """Provides batches on its device. Thread-safe.

    Attributes:
        resident: Whether all samples are on the device, so that a step can gather them itself.
        device: Device of the batches.
        dtype: dtype of the inputs.
        index_device: Device of the sample ids that callers pass.
    """

    resident: bool
    device: torch.device
    dtype: torch.dtype
    index_device: torch.device

    def __len__(self) -> int: ...

    def batch_bytes(self, batch: int) -> int:
        """Return the size of the inputs of a batch."""
        ...

    def batch(self, sample_ids: Tensor, clients: Tensor, step: Tensor | int) -> Batch:
        """Return training samples.

        Args:
            sample_ids: [clients, batch].
            clients: [clients].
            step: Global local step for all clients, or int64 [clients].
        """
        ...

    def feed(self, requests: Iterable[BatchRequest]) -> Iterator[Batch]:
        """Yield the batches in order; a decoding source reads ahead."""
        ...

    def read_range(self, begin: int, end: int) -> Batch:
        """Return samples [begin, end) in stored order, without augmentation and client axis."""
        ...

    def pop_wait_seconds(self) -> float:
        """Return the seconds that callers have waited for data since the last call."""
        ...

    def pop_messages(self) -> list[str]:
        """Return the log lines since the last call."""
        ...

    def close(self) -> None:
        """End threads and processes; nothing can be read afterwards."""
        ...
