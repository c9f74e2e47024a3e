"""Every function of torch.ops.fastlocal_native in plain torch, with the same arguments and in-place results."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import draw
from . import ACTIVATIONS

CLOSED = 128
"""Added to the position of a maximum whose gradient is 0."""
Activations = {number: name for name, number in ACTIVATIONS.items()}


def product(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """y <- x @ weight.T + bias"""
    y.copy_(F.linear(x, weight, bias))


def product_update(
    weight: Tensor,
    momentum: Tensor | None,
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    bias_momentum: Tensor | None,
    mu: float,
    decay: float,
    bias_decay: float,
    rate: float,
) -> None:
    """`sgd_update` of a weight by the gradient a.T @ b, and of a bias by the sum of a; mu is 0 without momenta."""
    sgd_update(weight, torch.zeros_like(weight) if momentum is None else momentum, a.t() @ b, mu, decay, rate)
    if bias is not None:
        velocity = torch.zeros_like(bias) if bias_momentum is None else bias_momentum
        sgd_update(bias, velocity, a.sum(dim=0), mu, bias_decay, rate)


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


def max_pool_act(
    x: Tensor, y: Tensor, places: Tensor, kernel: list[int], stride: list[int], padding: list[int], activation: int
) -> None:
    """y <- activation(maxima of windows of x), with the positions [images * rows * columns * channels] in the windows.

    CLOSED is added to a position where the activation lets no gradient pass.
    """
    width, columns = x.shape[3], y.shape[3]
    # whether the last window is whole does not matter here, as y's shape says how many there are
    best, found = F.max_pool2d(x, kernel, stride, padding, ceil_mode=True, return_indices=True)
    best, found = (value[:, :, : y.shape[2], :columns] for value in (best, found))
    rows = torch.arange(y.shape[2]).view(-1, 1) * stride[0] - padding[0]
    starts = torch.arange(columns) * stride[1] - padding[1]
    place = (found // width - rows) * kernel[1] + found % width - starts
    if Activations[activation] == "relu":
        place += CLOSED * (best <= 0)
    places.copy_(place.permute(0, 2, 3, 1).flatten())
    y.copy_(_activate(best, activation))


def max_pool_act_backward(
    grad: Tensor, places: Tensor, dx: Tensor, kernel: list[int], stride: list[int], padding: list[int]
) -> None:
    """Compute the gradient of `max_pool_act` from its positions: dx <- sum over windows of grad where x was taken."""
    images, channels, rows, columns = grad.shape
    place = places.view(images, rows, columns, channels).permute(0, 3, 1, 2).flatten(2).unsqueeze(2)
    taken = place == torch.arange(kernel[0] * kernel[1]).view(-1, 1)
    height, width = dx.shape[2:]
    # windows beyond the lower and right edge: fold takes an image that holds all of them whole
    size = [(n - 1) * s + k - 2 * p for n, s, k, p in zip((rows, columns), stride, kernel, padding, strict=True)]
    size = [max(given, needed) for given, needed in zip((height, width), size, strict=True)]
    slopes = (taken * grad.float().flatten(2).unsqueeze(2)).flatten(1, 2)
    whole = F.fold(slopes, tuple(size), tuple(kernel), padding=tuple(padding), stride=tuple(stride))
    dx.copy_(whole[:, :, :height, :width])


def module_words(client: Tensor, step: Tensor, purpose: int, seed: int, words: Tensor) -> None:
    """Fill words [size] with a client's draw at a step: word i is word i % 4 of block i // 4."""
    blocks = draw(seed, purpose, client.view(()), step.view(()), -(-words.numel() // 4))
    words.copy_(torch.stack(blocks, dim=-1).flatten()[: words.numel()])


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
