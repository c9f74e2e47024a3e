"""Trains many Local SGD clients at once: clients are a tensor axis."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .common.version import __version__

if TYPE_CHECKING:
    from .algorithms import Algorithm, AlgorithmState
    from .api.sweep import Sweep, sweep
    from .api.train import Run, train
    from .api.verify import verify
    from .common.errors import NonFiniteLoss, UsageError
    from .config.schema import RunConfig
    from .data import partition
    from .data.per_client import per_client
    from .reports.rounds_to import rounds_to

_LAZY = {
    "Algorithm": ".algorithms",
    "AlgorithmState": ".algorithms",
    "train": ".api.train",
    "Run": ".api.train",
    "sweep": ".api.sweep",
    "Sweep": ".api.sweep",
    "verify": ".api.verify",
    "per_client": ".data.per_client",
    "rounds_to": ".reports.rounds_to",
    "RunConfig": ".config",
    "UsageError": ".common.errors",
    "NonFiniteLoss": ".common.errors",
}
_MODULES = {"partition": ".data.partition"}
__all__ = ["Algorithm", "AlgorithmState", "NonFiniteLoss", "Run", "RunConfig", "Sweep", "UsageError", "__version__"]
__all__ += ["partition", "per_client", "rounds_to", "sweep", "train", "verify"]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are used: `import fastlocal` alone imports no torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
