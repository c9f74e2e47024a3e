"""Measured copy bandwidth and matrix product rate of the machine, the ceilings of a trace report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

COPY_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""More than the caches hold."""
SIDE = {"cpu": 1024, "cuda": 8192}
REPEATS = 7


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy in the device's memory."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of two large square matrices; a multiply-add counts as two."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: torch.mm(a, b), device)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median time of REPEATS calls, after a warm-up call."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
