"""Operations over all clients at once, each in a folder of its own with a plain-torch reference.

`get(op)` returns the implementation of an op; its name is the folder's and the function's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/reference.py")))
BACKENDS = ("auto", "reference")


def get(op: str, backend: str = "auto") -> Callable[..., Any]:
    """The function that computes `op`, imported only now.

    op: a folder of this package, such as "client_sgd"
    backend: "reference" (plain torch, any device) or "auto" (the fastest that can run here)
    Raises ValueError for an unknown op or backend.
    """
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r} for {op}; known: {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__name__}.{op}.reference")
    return getattr(module, op)
