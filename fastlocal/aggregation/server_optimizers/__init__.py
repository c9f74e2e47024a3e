"""Server optimizers, one file each: a class `Optimizer` in a file with the optimizer's name.

A server optimizer turns the start of a round and the mean of its clients into the new global model. Files whose names
begin with an underscore are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from torch import Tensor

from ...common.errors import UsageError, nearest
from ...config.schema import RunConfig
from ...config.training_settings import ServerConfig
from ._base import ServerOptimizer

__all__ = ["NAMES", "ServerOptimizer", "make_server_optimizer", "resolve_server", "server_rows"]

NAMES = ("none", *sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))
"""Names of --server-optimizer."""


def resolve_server(config: RunConfig) -> RunConfig:
    """Return `config` with the optimizer's defaults for its open settings.

    Raises:
        UsageError: The optimizer is unknown, or a setting means nothing for it.
    """
    server = config.server
    name = server.server_optimizer
    if name not in NAMES:
        raise UsageError(f"--server-optimizer {name}: is unknown{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    defaults = {} if name == "none" else dict(_class(name).defaults)
    unset = ServerConfig()
    for field, value in vars(server).items():
        if field != "server_optimizer" and value != getattr(unset, field) and field not in defaults:
            takes = ", ".join("--" + key.replace("_", "-") for key in defaults) or "no setting"
            flag = "--" + field.replace("_", "-")
            raise UsageError(f"{flag} {value}: means nothing for --server-optimizer {name}, which takes {takes}")
    if defaults.get("server_accumulator", 0.0) is None:
        tau = defaults["server_tau"] if server.server_tau is None else server.server_tau
        defaults["server_accumulator"] = tau**2
    config = config.with_values(**{field: value for field, value in defaults.items() if getattr(server, field) is None})
    if "server_tau" in defaults and config.server.server_tau == 0 and config.server.server_accumulator == 0:
        raise UsageError("--server-tau 0: a parameter that does not move would be 0 / 0; give --server-accumulator too")
    return config


def make_server_optimizer(server: ServerConfig, row: Tensor) -> ServerOptimizer | None:
    """Return the optimizer of resolved settings, or None for the plain mean.

    Args:
        server: The settings, of `resolve_server`.
        row: [n_params], whose dtype and device the state takes.
    """
    if server.server_optimizer == "none":
        return None
    return _class(server.server_optimizer)(server, row)


def server_rows(server: ServerConfig) -> int:
    """Return the number of rows [n_params] that the server holds beside the global model."""
    return 0 if server.server_optimizer == "none" else 1 + len(_class(server.server_optimizer).buffers)


def _class(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}").Optimizer
