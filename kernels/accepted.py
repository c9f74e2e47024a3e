"""Arguments that torch's convolution and norms accept, for the functions that replace them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .conv2d_clients.geometry import Geometry

Size = int | Sequence[int]


def _pair(size: Size) -> Sequence[int]:
    return (size, size) if isinstance(size, int) else (size[0], size[0]) if len(size) == 1 else size


def geometry_of(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Geometry | None:
    """Return the geometry of the filters, without the one-sided padding of "same"; None if torch rejects them."""
    stride, dilation = _pair(stride), _pair(dilation)
    if not input.dim() == weight.dim() == 4 or not input.is_floating_point() or weight.numel() == 0:
        return None
    if not isinstance(padding, str):
        padding = _pair(padding)
    elif padding == "same":
        if any(step != 1 for step in stride):
            return None
        padding = [step * (size - 1) // 2 for step, size in zip(_pair(dilation), weight.shape[2:], strict=True)]
    elif padding == "valid":
        padding = (0, 0)
    else:
        return None
    if not len(stride) == len(padding) == len(dilation) == 2 or min(*stride, *dilation, groups) < 1 or min(padding) < 0:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    if not torch.is_autocast_enabled(input.device.type):
        if input.dtype != weight.dtype or bias is not None and input.dtype != bias.dtype:
            return None
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    window = Geometry.from_sequences(stride, padding, dilation, groups)
    image, kernel = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    return window if min(window.output_size(image, kernel)) > 0 else None


def has_statistics(input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> bool:
    """Return True if torch accepts the arguments of a norm in `groups` groups, or for 0 over the batch."""
    if input.dim() < 2 or input.shape[1] == 0 or not input.is_floating_point():
        return False
    channels = input.shape[1]
    if groups and (channels % groups or 0 in input.shape[2:]) or input.numel() == (groups or channels):
        return False
    return all(affine is None or affine.shape == (channels,) for affine in (weight, bias))


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast tensors to autocast's dtype as convolutions do; None stays None."""
    device = next(each.device.type for each in tensors if each is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(each if each is None or each.dtype == torch.float64 else each.to(dtype) for each in tensors)
