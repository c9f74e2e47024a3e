"""Torch's dropout functions, drawn from a client's own random words."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .words import ClientWords, Sizes, into

SATURATION = 1.7580993408473766
"""The product of SELU's two constants. Alpha dropout replaces a dropped value by its negative."""


def _dropped(words: ClientWords, input: Tensor, p: float, training: bool, shape: Sizes) -> Tensor:
    """Drop with a mask of shape [*shape], which broadcasts to the shape of `input`."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return input * 0.0
    return torch.where(words.keeps(shape, p), input / (1.0 - p), input.new_zeros(()))


def dropout(
    words: ClientWords, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
) -> Tensor:
    """Compute torch.nn.functional.dropout or torch.dropout."""
    return into(input, _dropped(words, input, p, training and train, input.shape), inplace)


def dropout_in_place(words: ClientWords, input: Tensor, p: float, train: bool) -> Tensor:
    """Compute torch.dropout_."""
    return dropout(words, input, p, train, True)


def dropout_of_channels(
    words: ClientWords, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, space: int
) -> Tensor:
    """Compute dropout1d, dropout2d or dropout3d, where `space` is the number of spatial axes.

    Whole channels are dropped. The input may lack the batch axis.
    """
    lead = input.dim() - space
    shape = (*input.shape[:lead], *(1 for _ in range(space)))
    return into(input, _dropped(words, input, p, training, shape), inplace)


def feature_dropout(words: ClientWords, input: Tensor, p: float, train: bool) -> Tensor:
    """Compute torch.feature_dropout, which drops whole channels."""
    return _dropped(words, input, p, train, (*input.shape[:2], *(1 for _ in input.shape[2:])))


def alpha_dropout(
    words: ClientWords, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, whole: bool
) -> Tensor:
    """Compute alpha dropout, of whole channels if `whole`.

    A dropped value becomes the value of a saturated SELU. A linear map then restores the mean and the variance
    (Klambauer et al., 2017).
    """
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return into(input, input * 0.0, inplace)
    shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if whole else input.shape
    scale = 1.0 / math.sqrt((SATURATION * SATURATION * p + 1.0) * (1.0 - p))
    values = torch.where(words.keeps(shape, p), input, input.new_full((), -SATURATION))
    return into(input, values * scale + scale * SATURATION * p, inplace)


def attention(
    words: ClientWords,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute scaled_dot_product_attention, step by step if `dropout_p` is above 0."""
    if dropout_p == 0.0:
        more = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        result: Tensor = F.scaled_dot_product_attention(query, key, value, **more)  # type: ignore[arg-type]
        return result
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return _dropped(words, weights, dropout_p, True, weights.shape) @ value
