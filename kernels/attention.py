"""Attention that stays one operation for all clients under vmap.

torch has no vmap rule for its fused attention and calls it client by client. Here the clients become a part of the
batch, whose entries attention never mixes, and torch's own attention computes and differentiates that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_gradtrackingtensor

from .stacking import fold, unfold

BATCH, HEADS, LENGTH, WIDTH = DIMS = range(4)
"""Axes of the tensors that torch's fused attention takes."""


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention of one client.

    Arguments that it cannot fold go to torch: dropout, tensors without heads or whose batches differ in size, and
    derivatives by torch.func inside vmap.

    Args:
        query: [batch, heads, length, width].
        key: [batch, heads, keys, width].
        value: [batch, heads, keys, width of the result].
        attn_mask: Bool or floating, broadcast to [batch, heads, length, keys], or None.
        dropout_p: Probability of a dropped weight.
        is_causal: Whether a place sees no later ones.
        scale: Factor of the products; None: width ** -0.5.
        enable_gqa: Whether a key may serve several heads of the query.
    """
    tensors = [each for each in (query, key, value, attn_mask) if each is not None]
    folds = dropout_p == 0 and all(each.dim() == len(DIMS) for each in (query, key, value))
    folds = folds and query.shape[BATCH] == key.shape[BATCH] == value.shape[BATCH]
    folds = folds and (attn_mask is None or attn_mask.dim() <= len(DIMS)) and not torch.compiler.is_compiling()
    if not folds or any(map(is_gradtrackingtensor, tensors)) or not any(map(is_batchedtensor, tensors)):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    result: Tensor = _Folded.apply(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return result


class _Folded(torch.autograd.Function):
    """The rule of vmap alone: autograd records what the rule calls."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        """Fail: `scaled_dot_product_attention` calls it for tensors of vmap only."""
        raise AssertionError("outside vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> tuple[Tensor, int]:
        """Compute the attention of all clients."""
        size = info.batch_size
        tensors = (fold(each, dim, size) for each, dim in zip((query, key, value), in_dims, strict=False))
        batch = query.shape[BATCH + (in_dims[0] == BATCH)]
        mask = None if attn_mask is None else _fold_mask(attn_mask, in_dims[3], size, batch)
        y = scaled_dot_product_attention(
            *tensors, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return unfold(y, size), 0


def _fold_mask(mask: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """Return a mask for clients in the batch: as it is where all entries share it, else one for each entry."""
    if dim is not None:
        mask = mask.movedim(dim, 0)
    missing = len(DIMS) - (mask.dim() - (dim is not None))
    if dim is None and (missing or mask.shape[BATCH] == 1):
        return mask
    lead = () if dim is None else (size,)
    mask = mask.view(*lead, *[1] * missing, *mask.shape[len(lead) :])
    mask = mask.expand(*lead, batch, *mask.shape[len(lead) + 1 :])
    return fold(mask, None if dim is None else 0, size)
