"""Stacked convolution as one grouped torch convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry, empty


def conv2d_clients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    geometry: Geometry,
    statistics_eps: float | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Convolve every client's images with its own filters.

        y[c, b, o] = bias[c, o] + sum over i of cross-correlation(x[c, b, i], weight[c, o, i])

    Args:
        x: [clients, batch, in, h, w].
        weight: [clients, out, in / groups, kh, kw], used in the dtype of x.
        bias: [clients, out] or None.
        geometry: Movement of the filters.
        statistics_eps: Also return mean and 1 / sqrt(variance + eps) of each channel over batch, height and width, both
            [clients, 1, out] as norm_act has them for BatchNorm, in fp32 (fp64 for fp64 inputs).

    Returns:
        y [clients, batch, out, out_h, out_w] in the memory layout of x (channels-first or channels-last).

    Raises:
        ValueError: The shapes do not fit each other.
    """
    out = empty(geometry.check(x, weight), x)
    if out.numel():
        clients = x.shape[0]
        y = F.conv2d(
            _clients_as_channels(x),
            weight.to(x.dtype).flatten(0, 1),
            None if bias is None else bias.flatten(),
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            clients * geometry.groups,
        )
        out.copy_(y.unflatten(1, (clients, -1)).transpose(0, 1))
    return out if statistics_eps is None else (out, *statistics(out, statistics_eps))


def conv2d_clients_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, geometry: Geometry, need_x: bool = True, need_weight: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `conv2d_clients` with respect to x and weight.

    Args:
        grad: [clients, batch, out, out_h, out_w], gradient of the output.

    Returns:
        The gradient of x in its memory layout, and that of weight, contiguous; None if not needed.
    """
    geometry.check(x, weight)
    dx = empty(x.shape, x) if need_x else None
    dweight = weight.new_empty(weight.shape) if need_weight else None
    if grad.numel() == 0:
        return (None if dx is None else dx.zero_()), (None if dweight is None else dweight.zero_())
    clients = x.shape[0]
    dx_grouped, dweight_grouped, _ = torch.ops.aten.convolution_backward(
        _clients_as_channels(grad),
        _clients_as_channels(x),
        weight.to(x.dtype).flatten(0, 1),
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        clients * geometry.groups,
        (need_x, need_weight, False),
    )
    if dx is not None:
        dx.copy_(dx_grouped.unflatten(1, (clients, -1)).transpose(0, 1))
    if dweight is not None:
        dweight.copy_(dweight_grouped.view(weight.shape))
    return dx, dweight


def statistics(y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return BatchNorm's mean and 1 / sqrt(variance + eps) of y [clients, batch, channels, h, w]; of no elements 0."""
    wide = y if y.dtype == torch.float64 else y.float()
    count = max(1, y[0, :, 0].numel() if len(y) else 1)
    mean = wide.sum(dim=(1, 3, 4), keepdim=True) / count
    variance = (wide - mean).square().sum(dim=(1, 3, 4), keepdim=True) / count
    rstd = (variance + eps).rsqrt()
    return mean[..., 0, 0], rstd[..., 0, 0]


def _clients_as_channels(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1, 2)
