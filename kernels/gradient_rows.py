"""Rows of gradients that kernels write at the places of their parameters, so that nothing gathers them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Rows:
    params: Tensor
    grads: Tensor
    taken: set[int] = field(default_factory=set)


_active: list[_Rows] = []


@contextmanager
def gradient_rows(params: Tensor, grads: Tensor) -> Iterator[None]:
    """Within, `place_of` finds the place of the gradient of a view of `params` in `grads`.

    Args:
        params: [clients, n_params].
        grads: Of the same shape and strides.
    """
    assert params.shape == grads.shape and params.stride() == grads.stride()
    _active.append(_Rows(params, grads))
    try:
        yield
    finally:
        _active.pop()


def place_of(weight: Tensor) -> Tensor | None:
    """Return the place of a gradient like `weight` [clients, *shape], once; None if that is no view of parameters."""
    if not _active or torch.compiler.is_compiling():
        return None
    rows = _active[-1]
    offset = int(weight.storage_offset() - rows.params.storage_offset())
    is_view = weight.untyped_storage()._cdata == rows.params.untyped_storage()._cdata
    if not is_view or weight.dtype != rows.params.dtype or not weight[:1].is_contiguous() or offset in rows.taken:
        return None
    rows.taken.add(offset)  # a filter that is used twice has two gradients, which autograd adds
    return rows.grads.as_strided(weight.shape, weight.stride(), offset + rows.grads.storage_offset())


def is_placed(grad: Tensor, grads: Tensor) -> bool:
    """Return True if a gradient lies in the rows `grads`."""
    return grad.untyped_storage()._cdata == grads.untyped_storage()._cdata
