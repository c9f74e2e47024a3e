"""Index checks under vmap: torch's rules for some functions read another client's row for an index out of range."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .light_ops import define


def indices_within(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    """Return a copy of integer indices after a check that all are in [low, high).

    Args:
        indices: [...] of any integer type.
        low: Lowest allowed index.
        high: One more than the highest allowed index.
        what: Object of the indices, for the message.

    Raises:
        IndexError: On a CPU, if an index is out of range. A GPU reports it later, at the next synchronization, as for
            torch's own functions.
    """
    out: Tensor = _OP(indices, low, high, what)
    return out


def _within(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    _check(indices, low, high, what)
    return indices.clone()


def _check(indices: Tensor, low: int, high: int, what: str) -> None:
    if indices.device.type != "cpu":
        torch._assert_async(((indices >= low) & (indices < high)).all())
    elif indices.numel():
        smallest, largest = (int(value) for value in indices.aminmax())
        if smallest < low or largest >= high:
            wrong = smallest if smallest < low else largest
            raise IndexError(f"index {wrong} is out of bounds for {what} with size {high}")


def _fake(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    return torch.empty_like(indices)


def _vmap(info: Any, in_dims: tuple[Any, ...], indices: Tensor, low: int, high: int, what: str) -> tuple[Tensor, Any]:
    return indices_within(indices, low, high, what), in_dims[0]


_OP = define("indices_within(Tensor indices, int low, int high, str what) -> Tensor", _within, _fake, _vmap)
