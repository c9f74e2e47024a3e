"""Every function of torch.ops.fastlocal_native in plain torch, with the same arguments and in-place results."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ACTIVATIONS

Activations = {number: name for name, number in ACTIVATIONS.items()}


def product(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """y <- x @ weight.T + bias"""
    y.copy_(F.linear(x, weight, bias))


def product_update(
    weight: Tensor,
    momentum: Tensor,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    bias_momentum: Tensor | None,
    mu: float,
    decay: float,
    bias_decay: float,
    rate: float,
) -> None:
    """`sgd_update` of a weight by the gradient a.T @ b, and of a bias by the sum of a."""
    sgd_update(weight, momentum, a.t() @ b, mu, decay, rate)
    if bias is not None and bias_momentum is not None:
        sgd_update(bias, bias_momentum, a.sum(dim=0), mu, bias_decay, rate)


def sgd_update(weight: Tensor, momentum: Tensor, grad: Tensor, mu: float, decay: float, rate: float) -> None:
    """momentum <- mu * momentum + grad + decay * weight; weight <- weight - rate * momentum"""
    momentum.mul_(mu).add_(grad).add_(weight, alpha=decay)
    weight.sub_(momentum, alpha=rate)


def cross_entropy(outputs: Tensor, targets: Tensor, loss: Tensor, grad: Tensor, ignored: int) -> None:
    """Compute the mean loss of outputs [samples, classes], and its gradient."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        mean = F.cross_entropy(leaf, targets, ignore_index=ignored)
        (gradient,) = torch.autograd.grad(mean, leaf)
    loss.copy_(mean.detach())
    grad.copy_(gradient)


def group_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    activation: int,
) -> None:
    """y <- activation(group_norm(x) * weight + bias + residual), with mean and rstd [samples * groups]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    units = wide.unflatten(1, (groups, -1)).flatten(2).flatten(0, 1)
    mean.copy_(units.mean(dim=1))
    rstd.copy_((units.var(dim=1, correction=0) + eps).rsqrt())
    affine = _affine(_normalise(wide, mean, rstd, groups), weight, bias)
    y.copy_(_activate(affine if residual is None else affine + residual, activation))


def group_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dresidual: Tensor | None,
    groups: int,
    activation: int,
) -> None:
    """Compute the gradients of `group_norm_act` from its statistics."""
    wide = torch.promote_types(x.dtype, torch.float32)
    z, dy = (value.to(wide) for value in (x, grad))
    with torch.enable_grad():
        scale, shift = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        normal = _normalise(z, mean, rstd, groups).requires_grad_()
        affine = _affine(normal, scale, shift)
        before = affine if residual is None else affine + residual.to(wide)
        y = _activate(before, activation)
        dnormal, dscale, dshift, dbefore = torch.autograd.grad(y, (normal, scale, shift, before), dy)
    units, slopes = (value.unflatten(1, (groups, -1)) for value in (normal.detach(), dnormal))
    axes = tuple(range(2, units.dim()))
    inner = slopes - slopes.mean(dim=axes, keepdim=True) - units * (slopes * units).mean(dim=axes, keepdim=True)
    dx.copy_((inner * _by_group(rstd, x, groups)).flatten(1, 2))
    dweight.copy_(dscale)
    dbias.copy_(dshift)
    if dresidual is not None:
        dresidual.copy_(dbefore)


def client_sum(params: Tensor, total: Tensor, weight: float) -> None:
    """total <- total + weight * sum of the rows."""
    total.add_(params.double().sum(dim=0), alpha=weight)


def gather_images(
    images: Tensor, ids: Tensor, boxes: Tensor | None, scale: Tensor, offset: Tensor, out: Tensor, padding: int
) -> None:
    """out <- crop(images[ids]) * scale + offset.

    Args:
        images: uint8 [n, channels, height, width].
        ids: int64 [m].
        boxes: int64 [3, m], top, left and whether mirrored, or None.
        scale: [channels].
        offset: [channels].
        out: [m, channels, height, width].
        padding: Pixels on each side.
    """
    batch = images[ids]
    if boxes is not None:
        height, width = images.shape[2:]
        wide = F.pad(batch, (padding, padding, padding, padding))
        crops = [
            one[:, top : top + height, left : left + width].flip(-1) if mirrored else
            one[:, top : top + height, left : left + width]
            for one, (top, left, mirrored) in zip(wide, boxes.t().tolist(), strict=True)
        ]  # fmt: skip
        batch = torch.stack(crops) if crops else batch
    out.copy_(batch.to(out.dtype) * scale.view(-1, 1, 1) + offset.view(-1, 1, 1))


def _by_group(statistic: Tensor, x: Tensor, groups: int) -> Tensor:
    """View a statistic [samples * groups] as [samples, groups, 1, 1, 1], for x [samples, channels, h, w]."""
    return statistic.view(len(x), groups, *(1 for _ in x.shape[1:]))


def _normalise(x: Tensor, mean: Tensor, rstd: Tensor, groups: int) -> Tensor:
    units = x.unflatten(1, (groups, -1))
    return ((units - _by_group(mean, x, groups)) * _by_group(rstd, x, groups)).flatten(1, 2)


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def _activate(x: Tensor, activation: int) -> Tensor:
    name = Activations[activation]
    return F.relu(x) if name == "relu" else F.silu(x) if name == "silu" else x
