"""Checks of what a user's algorithm returns. Each message is one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..algorithms import Algorithm, AlgorithmState
from ..common.errors import UsageError

KINDS = ("clients", "server", "sums")


def start_state(algorithm: Algorithm, start: Tensor) -> AlgorithmState:
    """Return the state of an algorithm before the first round.

    Args:
        algorithm: The algorithm.
        start: [n_params], the start weights.

    Raises:
        UsageError: The user's `init` returns no state.
    """
    state = algorithm.init(start.clone())
    if not isinstance(state, AlgorithmState):
        raise UsageError(f"algorithm: init returned {_what(state)}; return a fastlocal.AlgorithmState")
    for kind in KINDS:
        check_tensors(f"{kind} of init", getattr(state, kind))
    for name, value in state.sums.items():
        if value.shape != start.shape:
            raise UsageError(f"algorithm: sums[{name!r}] of init has shape {list(value.shape)}, not that of `start`")
    return state


def check_tensors(what: str, values: Any) -> None:
    """Raise UsageError unless `values` is {name: tensor}."""
    if not isinstance(values, Mapping):
        raise UsageError(f"algorithm: {what} is {_what(values)}, not a dict of tensors by name")
    for name, value in values.items():
        if not isinstance(name, str):
            raise UsageError(f"algorithm: {what} has the name {name!r}; names are texts")
        if not isinstance(value, Tensor):
            raise UsageError(f"algorithm: {what} has {_what(value)} as {name!r}, not a tensor")


def checked_sums(parts: Any, params: Tensor, names: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return what `finish` returned for clients params [clients, n_params]; raise UsageError if it has other sums."""
    parts = {} if parts is None else parts
    check_tensors("what finish returned", parts)
    if parts.keys() != names.keys():
        found, wanted = (", ".join(one) or "none" for one in (parts, names))
        raise UsageError(f"algorithm: finish returned the sums {found}; those of init are {wanted}")
    for name, part in parts.items():
        if part.shape != params.shape or not part.is_floating_point():
            raise UsageError(
                f"algorithm: finish returned {name} as {part.dtype} of shape {list(part.shape)}, not numbers of shape "
                f"{list(params.shape)}"
            )
    return dict(parts)


def put_back(clients: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Copy the state of clients that `finish` replaced into its rows `own`; raise UsageError if it does not fit."""
    for name, rows in own.items():
        value = clients.get(name)
        if value is rows:
            continue
        if not isinstance(value, Tensor) or value.shape != rows.shape:
            shown = f"shape {list(value.shape)}" if isinstance(value, Tensor) else _what(value)
            raise UsageError(f"algorithm: finish left {shown} as clients[{name!r}], not shape {list(rows.shape)}")
        rows.copy_(value)


def checked_weights(weights: Any, clients: int) -> Tensor:
    """Return what `weights` returned, float64 [clients]; raise UsageError if these are no weights."""
    if not isinstance(weights, Tensor) or weights.shape != (clients,):
        shown = f"shape {list(weights.shape)}" if isinstance(weights, Tensor) else _what(weights)
        raise UsageError(f"algorithm: weights returned {shown}, not a weight for each of {clients} clients")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise UsageError("algorithm: weights returned a weight that is negative or not finite")
    return weights.to("cpu", torch.float64)


def checked_row(row: Any, start: Tensor) -> Tensor:
    """Return what `server` returned; raise UsageError if it is no row of parameters like start [n_params]."""
    if not isinstance(row, Tensor) or row.shape != start.shape or not row.is_floating_point():
        shown = f"{row.dtype} of shape {list(row.shape)}" if isinstance(row, Tensor) else _what(row)
        raise UsageError(f"algorithm: server returned {shown}, not numbers of shape {list(start.shape)}")
    return row


def describe(algorithm: Algorithm, state: AlgorithmState) -> dict[str, Any]:
    """Return what tells an algorithm from others, for resume.pt: its class, and its state of the clients."""
    shapes = {name: [list(value.shape), str(value.dtype)] for name, value in state.clients.items()}
    return {"class": f"{type(algorithm).__module__}.{type(algorithm).__qualname__}", "clients": shapes}


def refuse_another(stored: Mapping[str, Any] | None, algorithm: Algorithm, state: AlgorithmState) -> None:
    """Raise UsageError if a saved run was trained by an algorithm of another class or with other state of the clients.

    The module of a class may differ, as of one that is defined in a script.
    """
    if stored is None:
        return
    found = describe(algorithm, state)
    names = [one["class"].rpartition(".")[2] for one in (stored, found)]
    if names[0] != names[1]:
        raise UsageError(f"--continue: the run's algorithm is {names[0]}, not {names[1]}; give the same one")
    if stored["clients"] != found["clients"]:
        raise UsageError(
            f"--continue: the clients' state of the algorithm {names[0]} was {_listed(stored)}, and is {_listed(found)}"
        )


def _listed(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape}" for name, (shape, _) in found["clients"].items()) or "none"


def _what(value: Any) -> str:
    return f"a {type(value).__name__}"
