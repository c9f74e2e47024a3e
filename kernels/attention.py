"""Attention that stays one operation for all clients under vmap.

torch has no vmap rule for its fused attention and calls it client by client. Here the clients become a part of the
batch, whose entries attention never mixes, and torch's own attention computes and differentiates that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_gradtrackingtensor
from torch.overrides import TorchFunctionMode

from .stacking import fold, unfold

BATCH, HEADS, LENGTH, WIDTH = DIMS = range(-4, 0)
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

    Arguments whose batch cannot hold the clients are computed by two products: tensors without heads, batches of
    different sizes, and those within torch.func's derivatives and torch.compile.

    Args:
        query: [batch, heads, length, width], as below with any axes in front.
        key: [batch, heads, keys, width].
        value: [batch, heads, keys, width of the result].
        attn_mask: Bool or floating, broadcast to [batch, heads, length, keys], or None.
        dropout_p: Probability of a dropped weight; above 0 torch computes client by client.
        is_causal: Whether a place sees no later ones.
        scale: Factor of the products; None: width ** -0.5.
        enable_gqa: Whether a key may serve several heads of the query.
    """
    rest = attn_mask, is_causal, scale, enable_gqa
    if torch.compiler.is_compiling() and dropout_p == 0:
        return _by_products(query, key, value, *rest)
    tensors = [each for each in (query, key, value, attn_mask) if each is not None]
    derives = any(map(is_gradtrackingtensor, tensors))
    if dropout_p > 0 or not (derives or any(map(is_batchedtensor, tensors))):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    folds = not derives and all(each.dim() == len(DIMS) for each in (query, key, value))
    folds = folds and query.shape[BATCH] == key.shape[BATCH] == value.shape[BATCH]
    if not folds or (attn_mask is not None and attn_mask.dim() > len(DIMS)):
        return _by_products(query, key, value, *rest)
    result: Tensor = _Folded.apply(query, key, value, *rest)
    return result


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Compute attention as softmax(query @ key.T * scale + mask) @ value."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[HEADS] // part.shape[HEADS], HEADS) for part in (key, value))
    scores = query @ key.transpose(LENGTH, WIDTH) * (query.shape[WIDTH] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[LENGTH:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = attn_mask.any(WIDTH, keepdim=True)  # of a place without keys torch's result is 0
        return torch.where(seen, scores.masked_fill(~attn_mask & seen, -math.inf).softmax(WIDTH), 0) @ value
    return (scores if attn_mask is None else scores + attn_mask).softmax(WIDTH) @ value


class FoldedAttention(TorchFunctionMode):
    """Redirects torch's attention to `scaled_dot_product_attention`, for vmap over samples of one model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        ours = scaled_dot_product_attention if func is F.scaled_dot_product_attention else func
        return ours(*args, **(kwargs or {}))


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
        folded = [fold(each, dim, size) for each, dim in zip((query, key, value), in_dims, strict=False)]
        batch = (query.shape if in_dims[0] is None else query.select(in_dims[0], 0).shape)[BATCH]
        mask = None if attn_mask is None else _fold_mask(attn_mask, in_dims[3], size, batch)
        query, key, value = folded
        y = scaled_dot_product_attention(query, key, value, mask, 0.0, is_causal, scale, enable_gqa)
        return unfold(y, size), 0


def _fold_mask(mask: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """Return a mask for clients in the batch: as it is where all entries share it, else one for each entry."""
    if dim is not None:
        mask = mask.movedim(dim, 0)
    missing = len(DIMS) - (mask.dim() - (dim is not None))
    if dim is None and (missing > 0 or mask.shape[BATCH] == 1):
        return mask
    lead = () if dim is None else (size,)
    mask = mask.view(*lead, *[1] * missing, *mask.shape[len(lead) :])
    mask = mask.expand(*lead, batch, *mask.shape[len(lead) + 1 :])
    return fold(mask, None if dim is None else 0, size)
