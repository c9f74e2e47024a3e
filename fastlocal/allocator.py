"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


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
