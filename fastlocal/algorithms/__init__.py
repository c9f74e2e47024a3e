"""Algorithms of local training, one file each: a class `Method` in a file with the algorithm's name.

An algorithm says what is added to the gradients of the clients, how much each client counts in the mean, what clients
and the server remember from round to round, and what the server does with the mean. The optimizer of the clients, the
cohort and the server optimizer are settings of their own. Files whose names begin with an underscore are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ..common.errors import UsageError, nearest
from ..config.schema import RunConfig
from ..config.training_settings import AlgorithmConfig
from ._base import Algorithm, AlgorithmState, RoundWork, refuse_state

__all__ = ["NAMES", "PYTHON", "Algorithm", "AlgorithmState", "RoundWork", "make_algorithm", "refuse_state"]
__all__ += ["resolve_algorithm"]

NAMES = tuple(sorted(file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")))
"""Names of --algorithm."""
PYTHON = "python"
"""Name of the user's own algorithm in config.json."""


def resolve_algorithm(config: RunConfig, given: Algorithm | None = None) -> RunConfig:
    """Return `config` with the algorithm's defaults for its open settings, and what it demands of the others.

    Args:
        config: The settings.
        given: The user's own algorithm, or None for that of --algorithm.

    Raises:
        UsageError: The algorithm is unknown, or a setting contradicts it or means nothing for it.
    """
    name = config.algorithm.algorithm
    if name not in NAMES and given is None:
        raise UsageError(f"--algorithm {name}: is unknown{nearest(name, NAMES)}; known are {', '.join(NAMES)}")
    defaults = dict((Algorithm if given is not None else _class(name)).defaults)
    unset = AlgorithmConfig()
    for field, value in vars(config.algorithm).items():
        if field != "algorithm" and value != getattr(unset, field) and field not in defaults:
            takes = ", ".join("--" + key.replace("_", "-") for key in defaults) or "no setting"
            flag, whose = "--" + field.replace("_", "-"), f"--algorithm {name}"
            if given is not None:
                whose = f"an algorithm of your own, {type(given).__name__}"
            raise UsageError(f"{flag} {value}: means nothing for {whose}, which takes {takes}")
    own = vars(config.algorithm)
    config = config.with_values(**{field: value for field, value in defaults.items() if own[field] is None})
    algorithm = given or make_algorithm(config)
    demanded = algorithm.demand(config)
    if not isinstance(demanded, RunConfig):
        raise UsageError(f"algorithm: demand returned a {type(demanded).__name__}; return the settings")
    config = demanded
    if config.algorithm.correction_at == "step" and config.sgd.client_optimizer != "sgd":
        raise UsageError(
            f"--correction-at step: is for --client-optimizer sgd, not for {config.sgd.client_optimizer}; use gradient"
        )
    return config


def make_algorithm(config: RunConfig) -> Algorithm:
    """Return the algorithm of resolved settings."""
    algorithm: Algorithm = _class(config.algorithm.algorithm)(config)
    return algorithm


def _class(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}").Method
