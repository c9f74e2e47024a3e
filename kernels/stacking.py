"""Moving the axis that vmap adds into the axes of a stacked operation."""

from __future__ import annotations

from torch import Tensor


def fold(tensor: Tensor, dim: int | None, size: int, into: int = 0) -> Tensor:
    """The same elements with vmap's axis as the outer part of axis `into`.

    dim: where vmap's axis is, or None where the tensor has none and is repeated        size: of vmap's axis
    """
    if dim is None:
        moved = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        moved = tensor.movedim(dim, into)
    return moved.flatten(into, into + 1)


def unfold(tensor: Tensor, size: int, at: int = 0) -> Tensor:
    """The reverse for a result: vmap's axis is then `at`."""
    return tensor.unflatten(at, (size, tensor.shape[at] // size))
