"""Functions that look up rows by integer inputs, for vmap: no client may read another one's row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .indices import indices_within

IGNORED = -100
"""torch's default label of targets that do not count."""
_DEFAULTS = {
    "weight": None,
    "size_average": None,
    "ignore_index": IGNORED,
    "reduce": None,
    "reduction": "mean",
    "label_smoothing": 0.0,
}


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """torch.nn.functional.embedding of one client.

    torch's vmap rule reads the next client's row for an index beyond the table, and applies the padding index to the
    first client's table alone, because it concatenates the tables.
    """
    ids = indices_within(input, 0, weight.shape[0], "the table of an embedding")
    if max_norm is not None or scale_grad_by_freq or sparse:
        return F.embedding(ids, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    rows = F.embedding(ids, weight)
    if padding_idx is None:
        return rows
    padding = padding_idx % weight.shape[0]
    return torch.where((ids == padding).unsqueeze(-1), rows.detach(), rows)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """torch.nn.functional.one_hot of one client; also under vmap it rejects an index without a class."""
    if num_classes > 0:
        tensor = indices_within(tensor, 0, num_classes, "the classes of one_hot")
    return F.one_hot(tensor, num_classes)


INDEX_FILLS = (torch.index_fill, Tensor.index_fill, Tensor.index_fill_)


def with_positive_indices(input: Tensor, dim: int, index: Tensor, value: Any) -> tuple[Tensor, int, Tensor, Any]:
    """Return the arguments of an index_fill with negative indices counted from the end."""
    size = input.shape[dim]
    checked = indices_within(index, -size, size, f"dimension {dim}")
    return input, dim, torch.where(checked < 0, checked + size, checked), value


def takes_labels(input: Tensor, target: Tensor, *options: Any, **named: Any) -> bool:
    """Return whether F.cross_entropy is called for [batch, classes] and labels [batch], without options."""
    plain = not options and all(
        name in _DEFAULTS and (value is _DEFAULTS[name] or value == _DEFAULTS[name]) for name, value in named.items()
    )
    return plain and input.dim() == 2 and target.dim() == 1 and target.dtype == torch.int64 and len(target) > 0


def cross_entropy(input: Tensor, target: Tensor, **named: Any) -> Tensor:
    """Compute the mean cross-entropy of the labels that are not ignored.

    These are the operations of torch's own decomposition under vmap, whose checks import sympy: 0.8 s at every start.

    Args:
        input: [batch, classes].
        target: int64 [batch].
        **named: Defaults of F.cross_entropy.
    """
    counted = target != IGNORED
    log_softmax = F.log_softmax(input, 1)
    picked = -log_softmax.gather(1, torch.where(counted, target, 0).unsqueeze(1)).squeeze(1)
    losses = torch.where(counted, picked, 0)
    return losses.sum() / counted.sum().to(losses.dtype)
