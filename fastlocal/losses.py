"""Losses and counts of right predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of one batch. outputs: [batch, classes]        targets: int64 [batch]"""
    return F.cross_entropy(outputs, targets)


@torch.no_grad()
def count_correct(outputs: Tensor, targets: Tensor, topk: Sequence[int]) -> Tensor:
    """How many targets are among the k largest outputs, for each k.

    outputs: [..., classes]        targets: int64 [...]
    Returns float64 [len(topk)]; where there are fewer classes than k, every target counts.
    """
    most = min(max(topk), outputs.shape[-1])
    hits = outputs.topk(most, dim=-1).indices == targets.unsqueeze(-1)
    return torch.stack([hits[..., :k].sum(dtype=torch.float64) for k in topk])
