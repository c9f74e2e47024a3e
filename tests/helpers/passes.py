"""Forward passes of a process, in a file of their own: no look at what a module keeps goes into other files."""

from __future__ import annotations

_count = 0


def counted() -> int:
    """Count one more, and return how many there were."""
    global _count
    _count += 1
    return _count


def begin() -> None:
    """Count from none."""
    global _count
    _count = 0


def count() -> int:
    """Return how many there were."""
    return _count
