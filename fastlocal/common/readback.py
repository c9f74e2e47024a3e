"""Copies from a device for which the host waits only when it needs them."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """Tensors on their way to the host: what is queued or computed before `wait` costs the device no time."""

    def __init__(self, *tensors: Tensor) -> None:
        """Queue the copies behind the work that makes the tensors."""
        self._copied: torch.cuda.Event | None = None
        self._values = list(tensors)
        if any(tensor.is_cuda for tensor in tensors):
            self._values = [_queue_copy(tensor) for tensor in tensors]
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors on the CPU, as soon as they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def _queue_copy(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
