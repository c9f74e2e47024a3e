"""Copies of decoded batches to a GPU, beside the training on earlier ones."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

AHEAD = 2
"""Batches that are copied, or wait for it, beside the one whose step is running; each takes memory on both sides."""


class Uploads:
    """Copies pinned memory on a stream of its own. The host runs AHEAD batches ahead of the device at most."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, pinned: Tensor) -> Tensor:
        """Return a tensor on the device, for use on the current stream."""
        if self._stream is None:
            return pinned.to(self._device)
        if len(self._queued) > AHEAD:  # not for this batch, but for the step of one before it
            self._queued.popleft().synchronize()
        training = torch.cuda.current_stream(self._device)
        before = torch.cuda.Event()
        before.record(training)
        self._queued.append(before)
        with torch.cuda.stream(self._stream):
            copied = pinned.to(self._device, non_blocking=True)
        training.wait_stream(self._stream)
        copied.record_stream(training)
        return copied
