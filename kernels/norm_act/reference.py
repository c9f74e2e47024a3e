"""GroupNorm and training-mode BatchNorm of stacked clients with residual and activation, in plain torch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["none", "relu", "relu6", "silu", "hardswish"]
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish")


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    activation: Activation = "none",
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize, scale and shift, add, activate.

        y = activation((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(variance + eps)

    The variance is the biased one. Statistics and arithmetic are in fp32 (fp64 for fp64 inputs).

    Args:
        x: [clients, batch, channels, *spatial], any spatial axes.
        weight: [clients, channels] or None.
        bias: [clients, channels] or None.
        residual: As x, or None.
        groups: Groups of channels, normalized per sample (GroupNorm, Wu & He 2018); 0: every channel over batch and
            spatial axes (BatchNorm in training, Ioffe & Szegedy 2015).
        eps: Added to the variance.
        activation: One of ACTIVATIONS, as torch computes it.
        mean: The statistics where they are known, as returned; None, as rstd, to compute them.
        rstd: As mean.

    Returns:
        y in the dtype and memory layout of x; mean and rstd, [clients, batch, groups], or [clients, 1, channels] if
        groups is 0. Mean and variance of no elements are 0.

    Raises:
        ValueError: The shapes do not fit, BatchNorm has one value per channel, or the activation is unknown.
    """
    check(x, weight, bias, residual, groups, activation, mean, rstd)
    if x.numel() == 0:
        mean = wide(x).new_zeros(statistics_shape(x, groups))
        return torch.empty_like(x), mean, (mean + eps).rsqrt_()
    if mean is None or rstd is None:
        elements = units(wide(x), groups)
        mean = elements.mean(dim=-1)
        rstd = ((elements - mean.unsqueeze(-1)).square().mean(dim=-1) + eps).rsqrt()
    y = _activate(before_activation(x, weight, bias, residual, mean, rstd, groups), activation)
    return torch.empty_like(x).copy_(y), mean, rstd


def check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    activation: str,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
) -> None:
    """Raise ValueError if the arguments of `norm_act` do not fit each other."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    if x.dim() < 3:
        raise ValueError(f"inputs of shape {list(x.shape)}; they need axes for clients, batch and channels")
    if groups < 0 or groups and x.shape[2] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[2]} channels")
    if not groups and x.numel() > 0 and x.numel() == x.shape[0] * x.shape[2]:
        raise ValueError(f"one value per channel to normalise over the batch, for inputs of shape {list(x.shape)}")
    for name, affine in (("weight", weight), ("bias", bias)):
        if affine is not None and affine.shape != (x.shape[0], x.shape[2]):
            raise ValueError(f"{name} of shape {list(affine.shape)} for inputs of shape {list(x.shape)}")
    if (mean is None) != (rstd is None):
        raise ValueError("mean without rstd, or rstd without mean")
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        if statistic is not None and statistic.shape != statistics_shape(x, groups):
            raise ValueError(f"{name} of shape {list(statistic.shape)} for inputs of shape {list(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"a residual of shape {list(residual.shape)} for inputs of shape {list(x.shape)}")


def statistics_shape(x: Tensor, groups: int) -> tuple[int, int, int]:
    """Return the shape of mean and rstd."""
    clients, batch, channels = x.shape[:3]
    return (clients, batch, groups) if groups else (clients, 1, channels)


def wide(x: Tensor) -> Tensor:
    """Cast to the dtype of the statistics."""
    return x if x.dtype == torch.float64 else x.float()


def units(x: Tensor, groups: int) -> Tensor:
    """View as [clients, batch, groups, elements], or [clients, 1, channels, elements] if groups is 0."""
    if groups:
        return x.unflatten(2, (groups, x.shape[2] // groups)).flatten(3)
    return x.transpose(1, 2).flatten(2).unsqueeze(1)


def spread(statistic: Tensor, x: Tensor, groups: int) -> Tensor:
    """Repeat a unit's statistic for each of its channels: [clients, batch or 1, channels, 1, ...]."""
    if groups:
        statistic = statistic.repeat_interleave(x.shape[2] // groups, dim=2)
    return statistic.reshape(*statistic.shape, *(1 for _ in x.shape[3:]))


def per_channel(affine: Tensor, x: Tensor) -> Tensor:
    """View an affine parameter as [clients, 1, channels, 1, ...]."""
    return wide(affine).reshape(affine.shape[0], 1, affine.shape[1], *(1 for _ in x.shape[3:]))


def normalise(x: Tensor, mean: Tensor, rstd: Tensor, groups: int) -> Tensor:
    """Return (x - mean) * rstd."""
    return (wide(x) - spread(mean, x, groups)) * spread(rstd, x, groups)


def before_activation(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
) -> Tensor:
    """Return the argument of the activation."""
    y = normalise(x, mean, rstd, groups)
    if weight is not None:
        y = y * per_channel(weight, x)
    if bias is not None:
        y = y + per_channel(bias, x)
    return y if residual is None else y + wide(residual)


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    functions = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
    return functions[activation](x)
