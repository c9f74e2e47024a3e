"""Partitions of training samples among clients; also `fastlocal.partition`. Numpy, no torch.

Every file of `procedures` is a function here: `fastlocal.partition.dirichlet(labels, clients=100, alpha=0.3)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlocal.config.python_names import python_names

from . import natural as _natural
from . import procedures
from .build import build
from .partition import Partition

if TYPE_CHECKING:
    from .procedures.classes import classes
    from .procedures.dirichlet import dirichlet
    from .procedures.dirichlet_client import dirichlet_client
    from .procedures.iid import iid
    from .procedures.quantity import quantity
    from .procedures.shards import shards

natural = python_names()(_natural.natural)
load = python_names()(Partition.load)

__all__ = [
    "Partition",
    "build",
    "classes",
    "dirichlet",
    "dirichlet_client",
    "iid",
    "load",
    "natural",
    "quantity",
    "shards",
]


def __getattr__(name: str) -> Any:
    """Find the function of a procedure; its messages name arguments, not flags."""
    if name.replace("_", "-") in procedures.NAMES:
        return python_names()(procedures.get(name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name.replace("-", "_") for name in procedures.NAMES)})
