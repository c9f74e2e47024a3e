"""Published procedures, index for index, one file for each source.

A function NAME of a file SOURCE.py gives what that source gives for the same labels and seed, in the same order. Its
defaults are the source's.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastlocal.common.errors import UsageError, nearest

from .. import procedures

if TYPE_CHECKING:
    from ..partition import Partition

NAMES: tuple[str, ...] = tuple(sorted(file.name.replace("_", "-") for file in pkgutil.iter_modules(__path__)))
"""Names of the sources, as --partition-as spells them."""


def get(source: str, name: str) -> Callable[..., Partition]:
    """Return the function of a source for a procedure in procedures.NAMES; raises UsageError if it has none."""
    if source not in NAMES:
        raise UsageError(f"--partition-as {source}: is unknown{nearest(source, NAMES)}; known are {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{source.replace('-', '_')}")
    function: Callable[..., Partition] | None = getattr(module, name.replace("-", "_"), None)
    if function is None:
        own = ", ".join(each for each in procedures.NAMES if hasattr(module, each.replace("-", "_")))
        raise UsageError(f"--partition-as {source}: has no procedure {name}; it has {own}")
    return function
