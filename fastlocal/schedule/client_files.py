"""Files about clients: their weights, and who can take part in which round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UsageError

MAX_BYTES = 2**30
"""Size of the largest file that is read."""


def read_weights(path: Path, population: int, names: Sequence[str] | None) -> Tensor:
    """Read a weight for every client, float64 [population].

    Args:
        path: .npy of one number per client, or .json with a list of them or {client: weight}.
        population: Number of clients.
        names: Names of the clients, or None for their numbers.

    Raises:
        UsageError: The file cannot be read, or does not hold a finite weight above 0 for every client.
    """
    flag = f"--client-weights {path}"
    if path.suffix == ".npy":
        _refuse_large(path, flag)
        try:
            values: Any = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"{flag}: cannot be read ({_short(error)})") from error
    else:
        values = _read_json(path, flag)
        if isinstance(values, dict):
            number_of = _numbers(names, population)
            unknown = next((name for name in values if name not in number_of), None)
            if unknown is not None:
                raise UsageError(f"{flag}: there is no client {unknown!r}")
            missing = next((name for name in number_of if name not in values), None)
            if missing is not None:
                raise UsageError(f"{flag}: has no weight for client {missing!r}")
            values = [values[name] for name in number_of]
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise UsageError(f"{flag}: is no list of numbers and no {{client: number}}")
    try:
        weights = np.asarray(values) if isinstance(values, np.ndarray) else np.asarray(values, dtype=np.float64)
        if weights.dtype.kind not in "fiu":
            raise TypeError(f"dtype {weights.dtype}")
        weights = weights.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{flag}: does not hold numbers ({_short(error)})") from error
    if weights.shape != (population,):
        raise UsageError(f"{flag}: has shape {list(weights.shape)}, and there are {population} clients; give one each")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if len(bad):
        raise UsageError(f"{flag}: the weight of client {bad[0]} is {weights[bad[0]]}; give finite ones above 0")
    return torch.from_numpy(weights)


def read_availability(path: Path, population: int, names: Sequence[str] | None) -> list[Tensor]:
    """Read the clients that can take part in each round, int64 [clients] in ascending order.

    Args:
        path: .json with a list of lists of clients, one per round; after the last one the first holds again.
        population: Number of clients.
        names: Names of the clients, or None for their numbers.

    Raises:
        UsageError: The file cannot be read, or names a client that does not exist.
    """
    flag = f"--cohort-sampling {path}"
    rounds = _read_json(path, flag)
    if not isinstance(rounds, list) or not rounds or not all(isinstance(clients, list) for clients in rounds):
        raise UsageError(f"{flag}: is no list of lists of clients, one per round")
    number_of = _numbers(names, population)
    available = []
    for number, clients in enumerate(rounds, 1):
        ids = [_client(client, number_of, population) for client in clients]
        if None in ids:
            raise UsageError(f"{flag}: round {number} names client {clients[ids.index(None)]!r}, which does not exist")
        if len(set(ids)) < len(ids):
            raise UsageError(f"{flag}: round {number} names a client twice")
        available.append(torch.tensor(sorted(ids), dtype=torch.int64))
    return available


def _client(client: Any, number_of: Mapping[str, int], population: int) -> Any:
    """Return the number of a client, or None if it does not exist."""
    if isinstance(client, str):
        return number_of.get(client)
    is_number = isinstance(client, int) and not isinstance(client, bool)
    return client if is_number and 0 <= client < population else None


def _numbers(names: Sequence[str] | None, population: int) -> dict[str, int]:
    """Return {name: number} of all clients."""
    return {name: number for number, name in enumerate(names if names is not None else map(str, range(population)))}


def _read_json(path: Path, flag: str) -> Any:
    _refuse_large(path, flag)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: cannot be read as JSON ({_short(error)})") from error


def _refuse_large(path: Path, flag: str) -> None:
    if not path.is_file():
        raise UsageError(f"{flag}: is no file")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{flag}: is larger than {MAX_BYTES // 2**20} MiB")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
