"""Checks of the optimizer of clients and of the terms of algorithms. Each message is one line that names the flag."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .schema import RunConfig

ADAMW = ("beta1", "beta2", "adam_eps")
"""Settings that mean something with --client-optimizer adamw alone."""


def optimizer_problems(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the optimizer of the clients."""
    sgd = config.sgd
    for name, beta in (("beta1", sgd.beta1), ("beta2", sgd.beta2)):
        if not 0 <= beta < 1:  # also NaN
            yield f"--{name} {beta}: must be in [0, 1)"
    if not (math.isfinite(sgd.adam_eps) and sgd.adam_eps > 0):
        yield f"--adam-eps {sgd.adam_eps}: must be a finite number above 0"
    for name in ("prox_mu", "feddyn_alpha"):
        value = getattr(config.algorithm, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            yield f"--{name.replace('_', '-')} {value}: must be a finite number, 0 or more"
    fragments, algorithm = config.schedule.sync_fragments, config.algorithm.algorithm
    if fragments < 1:
        yield f"--sync-fragments {fragments}: must be at least 1"
    if fragments > 1 and algorithm != "fedavg":
        yield f"--sync-fragments {fragments}: is for --algorithm fedavg, not for {algorithm}"
    if sgd.client_optimizer == "adamw":
        if sgd.nesterov:
            yield "--nesterov 1: is for --client-optimizer sgd; leave it out"
        if sgd.momentum:
            yield f"--momentum {sgd.momentum}: is for --client-optimizer sgd; adamw takes --beta1 (give --momentum 0)"
