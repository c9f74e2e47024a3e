"""Procedures that draw a partition, one file each, found by file name.

A file NAME.py defines a function NAME(labels, *, clients, seed=0, ...) -> Partition; --partition spells the name with
dashes. A function whose first parameter is `samples` takes their number instead of labels. The further
parameters are among alpha, shards_per_client, classes_per_client and min_client_size. Files whose names begin with an
underscore are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..partition import Partition

NAMES: tuple[str, ...] = tuple(
    sorted(file.name.replace("_", "-") for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_"))
)
"""Names of the procedures, as flags spell them."""


def get(name: str) -> Callable[..., Partition]:
    """Return the function of a procedure in NAMES."""
    own = name.replace("-", "_")
    function: Callable[..., Partition] = getattr(importlib.import_module(f"{__name__}.{own}"), own)
    return function
