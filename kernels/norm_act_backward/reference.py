"""Gradients of norm_act in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..norm_act.reference import Activation, before_activation, check, normalise, per_channel, spread, units, wide


def norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    groups: int,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of `norm_act`; mean and rstd are its results.

    With g the gradient before the activation, h = weight * g, n = (x - mean) * rstd, and means over a unit's elements:

        dx = rstd * (h - mean(h) - n * mean(h * n)),   dweight = sum(g * n),   dbias = sum(g),   dresidual = g

    Returns:
        dx like x; [2, clients, channels] of dweight and dbias in the dtype of the statistics; dresidual like x, or None
        without a residual.

    Raises:
        ValueError: As `norm_act`.
    """
    check(x, weight, bias, residual, groups, activation)
    g = wide(grad)
    if activation != "none":
        before = before_activation(x, weight, bias, residual, mean, rstd, groups)
        g = g * _slope(before, activation)
    normal = normalise(x, mean, rstd, groups)
    h = g if weight is None else g * per_channel(weight, x)
    first = units(h, groups).mean(dim=-1)
    second = (units(h, groups) * units(normal, groups)).mean(dim=-1)
    dx = spread(rstd, x, groups) * (h - spread(first, x, groups) - normal * spread(second, x, groups))
    others = (1, *range(3, x.dim()))
    dweight, dbias = (g * normal).sum(dim=others), g.sum(dim=others)
    dresidual = None if residual is None else torch.empty_like(x).copy_(g)
    return torch.empty_like(x).copy_(dx), torch.stack((dweight, dbias)), dresidual


def _slope(x: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return x > 0
    if activation == "relu6":
        return (x > 0) & (x < 6)
    if activation == "hardswish":
        return torch.where(x < 3, x / 3 + 0.5, 1.0).masked_fill_(x <= -3, 0.0)
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))
