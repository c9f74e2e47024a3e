"""GroupNorm and training-mode BatchNorm of stacked clients, residual and activation included, in plain torch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "relu", "silu"]
ACTIVATIONS = ("none", "relu", "silu")


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    activation: Activation = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, scale and shift, add, activate.

        y = activation((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(variance + eps)

    x, residual: [clients, batch, channels, *spatial], any spatial axes        weight, bias: [clients, channels] or None
    groups: of channels, normalised sample by sample (GroupNorm, Wu & He 2018); 0: every channel over batch and
        spatial axes (BatchNorm in training, Ioffe & Szegedy 2015). The variance is the biased one.
    Statistics and arithmetic in fp32 (fp64 for fp64 inputs); y has the dtype and memory layout of x.
    Returns y, mean and rstd, the latter two [clients, batch, groups], or [clients, 1, channels] where groups is 0.
    Raises ValueError where the shapes do not fit, or for an unknown activation.
    """
    check(x, weight, bias, residual, groups, activation)
    units = _units(_wide(x), groups)
    mean = units.mean(dim=-1)
    rstd = (units.var(dim=-1, correction=0) + eps).rsqrt()
    y = _activate(_before(x, weight, bias, residual, mean, rstd, groups), activation)
    return torch.empty_like(x).copy_(y), mean, rstd


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `norm_act` from that of y; mean and rstd are those that it returned.

    With g the gradient before the activation, h = weight * g, n = (x - mean) * rstd and means over a unit's elements:

        dx = rstd * (h - mean(h) - n * mean(h * n)),   dweight = sum(g * n),   dbias = sum(g),   dresidual = g

    Returns dx and dresidual (None without a residual) like x, dweight and dbias [clients, channels] in the statistics'
    dtype.
    """
    check(x, weight, bias, residual, groups, activation)
    g = _wide(grad)
    if activation != "none":
        before = _before(x, weight, bias, residual, mean, rstd, groups)
        g = g * (before > 0) if activation == "relu" else g * _silu_slope(before)
    normal = _normalised(x, mean, rstd, groups)
    h = g if weight is None else g * _per_channel(weight, x)
    units, normal_units = _units(h, groups), _units(normal, groups)
    first, second = units.mean(dim=-1), (units * normal_units).mean(dim=-1)
    dx = _spread(rstd, x, groups) * (h - _spread(first, x, groups) - normal * _spread(second, x, groups))
    others = (1, *range(3, x.dim()))
    dweight, dbias = (g * normal).sum(dim=others), g.sum(dim=others)
    dresidual = None if residual is None else torch.empty_like(x).copy_(g)
    return torch.empty_like(x).copy_(dx), dweight, dbias, dresidual


def check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, groups: int, activation: str
) -> None:
    """Raises ValueError where the arguments of `norm_act` do not fit each other."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if x.dim() < 3:
        raise ValueError(f"inputs of shape {list(x.shape)}; they need axes for clients, batch and channels")
    if groups < 0 or groups and x.shape[2] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[2]} channels")
    for name, affine in (("weight", weight), ("bias", bias)):
        if affine is not None and affine.shape != (x.shape[0], x.shape[2]):
            raise ValueError(f"{name} of shape {list(affine.shape)} for inputs of shape {list(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"a residual of shape {list(residual.shape)} for inputs of shape {list(x.shape)}")


def statistics_shape(x: Tensor, groups: int) -> tuple[int, int, int]:
    """Shape of mean and rstd."""
    clients, batch, channels = x.shape[:3]
    return (clients, batch, groups) if groups else (clients, 1, channels)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _units(x: Tensor, groups: int) -> Tensor:
    """[clients, batch, groups, elements], or [clients, 1, channels, elements] where groups is 0."""
    if groups:
        return x.reshape(*x.shape[:2], groups, -1)
    return x.transpose(1, 2).flatten(2).unsqueeze(1)


def _spread(statistic: Tensor, x: Tensor, groups: int) -> Tensor:
    """[clients, batch or 1, channels, 1, ...]: a unit's statistic at each of its channels."""
    if groups:
        statistic = statistic.repeat_interleave(x.shape[2] // groups, dim=2)
    return statistic.reshape(*statistic.shape, *(1 for _ in x.shape[3:]))


def _per_channel(affine: Tensor, x: Tensor) -> Tensor:
    return _wide(affine).reshape(affine.shape[0], 1, affine.shape[1], *(1 for _ in x.shape[3:]))


def _normalised(x: Tensor, mean: Tensor, rstd: Tensor, groups: int) -> Tensor:
    return (_wide(x) - _spread(mean, x, groups)) * _spread(rstd, x, groups)


def _before(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
) -> Tensor:
    """What the activation is applied to."""
    y = _normalised(x, mean, rstd, groups)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return y if residual is None else y + _wide(residual)


def _activate(x: Tensor, activation: str) -> Tensor:
    return F.relu(x) if activation == "relu" else F.silu(x) if activation == "silu" else x


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))
