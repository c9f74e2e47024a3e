"""Stacked convolution as batched matrix products over unfolded images (im2col), with kh * kw times their memory."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry, empty


def conv2d_clients(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, geometry: Geometry) -> Tensor:
    """See reference.py."""
    out = empty(geometry.check(x, weight), x)
    if out.numel() == 0:
        return out
    product = _filters(weight, geometry) @ _columns(x, weight, geometry)
    out.copy_(product.view(out.shape))
    return out if bias is None else out.add_(bias[:, None, :, None, None])


def conv2d_clients_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry, need_x: bool = True, need_weight: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """See reference.py."""
    geometry.check(x, weight)
    dx = empty(x.shape, x) if need_x else None
    dweight = weight.new_empty(weight.shape) if need_weight else None
    if grad.numel() == 0:
        return (None if dx is None else dx.zero_()), (None if dweight is None else dweight.zero_())
    rows = grad.flatten(3).unflatten(2, (geometry.groups, -1))
    if dweight is not None:
        per_image = rows @ _columns(x, weight, geometry).transpose(-1, -2)
        dweight.copy_(per_image.sum(dim=1).view(weight.shape))
    if dx is not None:
        columns = _filters(weight, geometry).transpose(-1, -2) @ rows
        images = F.fold(
            columns.flatten(2, 3).flatten(0, 1),
            x.shape[3:],
            weight.shape[3:],
            geometry.dilation,
            geometry.padding,
            geometry.stride,
        )
        dx.copy_(images.view(x.shape))
    return dx, dweight


def _columns(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """[clients, batch, groups, in / groups * kh * kw, out_h * out_w]"""
    columns = F.unfold(x.flatten(0, 1), weight.shape[3:], geometry.dilation, geometry.padding, geometry.stride)
    return columns.unflatten(1, (geometry.groups, -1)).unflatten(0, x.shape[:2])


def _filters(weight: Tensor, geometry: Geometry) -> Tensor:
    """[clients, 1, groups, out / groups, in / groups * kh * kw]"""
    return weight.flatten(2).unflatten(1, (geometry.groups, -1)).unsqueeze(1)
