"""Indices under vmap: torch's rules for some functions take one that is out of range for a row of another client."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .light_ops import define


def indices_within(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    """A copy of integer indices that are all in [low, high).

    Args:
        indices: [...] of any integer type.
        low: The lowest allowed.
        high: One more than the highest allowed.
        what: Whose they are, for the message.

    Raises:
        IndexError: On a CPU, where one is not. A GPU fails later, at the next time that the host waits for it, as it
            does for torch's own functions.
    """
    checked: Tensor = _OP(indices, low, high, what)
    return checked


def _within(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    _check(indices, low, high, what)
    return indices.clone()


def _check(indices: Tensor, low: int, high: int, what: str) -> None:
    if indices.device.type != "cpu":
        torch._assert_async(((indices >= low) & (indices < high)).all())
    elif indices.numel():
        least, most = (int(value) for value in indices.aminmax())
        if least < low or most >= high:
            wrong = least if least < low else most
            raise IndexError(f"index {wrong} is out of bounds for {what} with size {high}")


def _fake(indices: Tensor, low: int, high: int, what: str) -> Tensor:
    return torch.empty_like(indices)


def _vmap(info: Any, in_dims: tuple[Any, ...], indices: Tensor, low: int, high: int, what: str) -> tuple[Tensor, Any]:
    return indices_within(indices, low, high, what), in_dims[0]


_OP = define("indices_within(Tensor indices, int low, int high, str what) -> Tensor", _within, _fake, _vmap)
