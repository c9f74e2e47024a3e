"""Moves vmap's axis into the axes of a stacked operation."""

from __future__ import annotations

import torch
from torch import Tensor


def fold(tensor: Tensor, dim: int | None, size: int, into: int = 0) -> Tensor:
    """Merge vmap's axis into axis `into`, as its outer part.

    Args:
        tensor: The tensor.
        dim: vmap's axis; None repeats the tensor.
        size: Size of vmap's axis.
        into: The axis.
    """
    if dim is None:
        stacked = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        stacked = tensor.movedim(dim, into)
    return stacked.flatten(into, into + 1)


def unfold(tensor: Tensor, size: int, at: int = 0) -> Tensor:
    """Reverse `fold` for a result; vmap's axis is then `at`."""
    return tensor.unflatten(at, (size, tensor.shape[at] // size))


def only(stacked: Tensor) -> Tensor:
    """Return the result of the only client of a stacked operation, which nothing else may use.

    It is no view, on which an operation in place costs the backward pass two copies of the gradient.
    """
    result: Tensor = torch.ops.aten._unsafe_view(stacked, stacked.shape[1:])
    return result
