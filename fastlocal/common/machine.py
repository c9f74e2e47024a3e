"""The memory of this machine: what is free, what this process holds, and how the C library reuses it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

SPARE = 0.9
"""Of a GPU's free memory, the rest being left to what libraries take for themselves."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available(device: torch.device) -> int:
    """Bytes that this process may take in all: what it has and what is free.

    On a GPU: those of torch's allocator, without the CUDA context.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SPARE * (free + torch.cuda.memory_reserved(device)))
    free = free_bytes()
    most, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if most is not None and used is not None:
        free = min(free, max(most - used, 0))
    return free + resident_bytes()


def resident_bytes(proc: Path = PROC) -> int:
    """Resident set of this process; where the system does not say, the largest that it has been."""
    try:
        return int((proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes(proc: Path = PROC) -> int:
    """What the system could give to processes; where it does not say, all that it has."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def keep_freed_memory() -> None:
    """Have glibc reuse large buffers, instead of giving each back to the system and asking for another.

    Memory that is new to a process is cleared page by page as it is first touched: 64 stacked clients of 395,000
    parameters took 3.2 to 4.5 ms per client-step, with 520,000 page faults a round, and take 1.9 to 2.9. The process
    then holds about as much as it ever needed at once. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # blocks beyond 32 MiB are otherwise the system's whatever the threshold
        mallopt(M_TRIM_THRESHOLD, -1)  # never
