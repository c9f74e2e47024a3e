"""The executors by name. A new one is a class in a file of its own, a line here, and its name in config/schema.py."""

from __future__ import annotations

from .base import ExecutorKind
from .looped import LoopedExecutor
from .stacked import StackedExecutor
from .threaded import ThreadedExecutor

KINDS: tuple[type[ExecutorKind], ...] = (ThreadedExecutor, LoopedExecutor, StackedExecutor)
"""In the order in which they are timed."""
EXECUTORS = {kind.name: kind for kind in KINDS}
