"""Stacked convolution as one torch convolution per client; on CPUs faster than the grouped one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry, empty


def conv2d_clients(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, geometry: Geometry) -> Tensor:
    """See reference.py."""
    out = empty(geometry.check(x, weight), x)
    if out.numel() == 0:
        return out
    for client in range(x.shape[0]):
        out[client] = F.conv2d(
            x[client],
            weight[client],
            None if bias is None else bias[client],
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.groups,
        )
    return out


def conv2d_clients_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry, need_x: bool = True, need_weight: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """See reference.py."""
    geometry.check(x, weight)
    dx = empty(x.shape, x) if need_x else None
    dweight = weight.new_empty(weight.shape) if need_weight else None
    if grad.numel() == 0:
        return (None if dx is None else dx.zero_()), (None if dweight is None else dweight.zero_())
    for client in range(x.shape[0]):
        dx_one, dweight_one, _ = torch.ops.aten.convolution_backward(
            grad[client],
            x[client],
            weight[client],
            None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            False,
            (0, 0),
            geometry.groups,
            (need_x, need_weight, False),
        )
        if dx is not None:
            dx[client] = dx_one
        if dweight is not None:
            dweight[client] = dweight_one
    return dx, dweight
