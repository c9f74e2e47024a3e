"""The executors by name. A new executor is a class in its own file, a line here, and its name in config/schema.py."""

from __future__ import annotations

from .interface import ExecutorKind
from .looped import LoopedExecutor
from .stacked import StackedExecutor
from .threaded import ThreadedExecutor

KINDS: tuple[type[ExecutorKind], ...] = (ThreadedExecutor, LoopedExecutor, StackedExecutor)
"""The executors in the order of timing."""
EXECUTORS = {kind.name: kind for kind in KINDS}
