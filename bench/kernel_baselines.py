"""Baselines of the Triton kernels: the same results by torch, prepared for its fastest path.

Each function takes the arguments of an op and returns a function that may be called repeatedly. Work that a user
would do once before a loop over steps is done beforehand: rates become Python numbers, and images get the layout that
suits the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlocal.kernels.conv2d_clients.geometry import Geometry

Run = Callable[[], object]


def foreach_sgd(
    params: Tensor,
    momentum: Tensor | None,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    *,
    mu: float,
    weight_decay: float,
    nesterov: bool,
) -> Run:
    """Return client_sgd in the manner of torch's foreach optimizers, with a tensor for each client."""
    rows, gradients = list(params.unbind()), list(grads.unbind())
    velocities = None if momentum is None else list(momentum.unbind())
    rates = [-rate for rate in learning_rate.tolist()]

    @torch.no_grad()
    def run() -> None:
        updates = gradients
        if weight_decay:
            decayed = torch._foreach_mul(rows, [decay_mask] * len(rows))
            torch._foreach_add_(updates, decayed, alpha=weight_decay)
        if velocities is not None:
            torch._foreach_mul_(velocities, mu)
            torch._foreach_add_(velocities, updates)
            updates = list(torch._foreach_add(updates, velocities, alpha=mu)) if nesterov else velocities
        torch._foreach_add_(rows, torch._foreach_mul(updates, rates))

    return run


def foreach_adamw(
    params: Tensor,
    momentum: Tensor,
    square: Tensor,
    steps: Tensor,
    grads: Tensor,
    learning_rate: Tensor,
    decay_mask: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Run:
    """Return client_adamw in the manner of torch's foreach optimizers, with a tensor for each client."""
    rows, moments, squares, gradients = (list(buffer.unbind()) for buffer in (params, momentum, square, grads))
    rates, taken = learning_rate.tolist(), [count + 1 for count in steps.tolist()]
    kept = [1 - rate * weight_decay * decay_mask for rate in rates]
    roots = [(1 - beta2**count) ** 0.5 for count in taken]
    sizes = [-rate / (1 - beta1**count) for rate, count in zip(rates, taken, strict=True)]

    @torch.no_grad()
    def run() -> None:
        steps.add_(1)
        if weight_decay:
            torch._foreach_mul_(rows, kept)
        torch._foreach_lerp_(moments, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, roots)
        torch._foreach_add_(denominators, eps)
        torch._foreach_addcdiv_(rows, moments, denominators, sizes)

    return run


def foreach_mean(params: Tensor, total: Tensor, weight: float | Tensor, *, broadcast: bool = False) -> Run:
    """Return client_mean with foreach: rows are weighted, and added in pairs until one is left."""
    rows = list(params.unbind())
    weights = weight.tolist() if isinstance(weight, Tensor) else [weight] * len(rows)

    @torch.no_grad()
    def run() -> None:
        parts = list(torch._foreach_mul(rows, weights))
        while len(parts) > 1:
            half = len(parts) // 2
            torch._foreach_add_(parts[:half], parts[-half:])
            parts = parts[: len(parts) - half]
        total.add_(parts[0])
        if broadcast:
            torch._foreach_copy_(rows, [total] * len(rows))

    return run


def foreach_sgd_mean(params: Tensor, *buffers: Any, total: Tensor, weight: float | Tensor, **options: Any) -> Run:
    """Return client_sgd_mean: the step, then the mean."""
    step, mean = foreach_sgd(params, *buffers, **options), foreach_mean(params, total, weight)

    def run() -> None:
        step()
        mean()

    return run


def grouped_convolution(result: str, **inputs: Any) -> Run:
    """Return one grouped convolution of torch on images [batch, clients * channels, h, w].

    Args:
        result: "y" for the forward pass, "x" or "weight" for the gradient.
        **inputs: Arguments of the op.
    """
    geometry: Geometry = inputs["geometry"]
    x, weight = _clients_as_channels(inputs["x"]), inputs["weight"].flatten(0, 1)
    bias, grad, added = (inputs.get(name) for name in ("bias", "grad", "added"))
    return _convolution(
        result,
        x,
        weight,
        None if bias is None else bias.flatten(),
        None if grad is None else _clients_as_channels(grad),
        None if added is None else _clients_as_channels(added),
        geometry,
        groups=inputs["x"].shape[0] * geometry.groups,
    )


def looped_convolution(result: str, **inputs: Any) -> Run:
    """Return a convolution of torch for each client, whose results are not gathered in one tensor.

    Args:
        result: As in `grouped_convolution`.
        **inputs: Arguments of the op.
    """
    geometry: Geometry = inputs["geometry"]
    bias, grad, added = (inputs.get(name) for name in ("bias", "grad", "added"))
    runs = [
        _convolution(
            result,
            inputs["x"][client],
            inputs["weight"][client],
            None if bias is None else bias[client],
            None if grad is None else grad[client],
            None if added is None else added[client],
            geometry,
            groups=geometry.groups,
        )
        for client in range(inputs["x"].shape[0])
    ]
    return lambda: [run() for run in runs]


def _convolution(
    result: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor | None,
    added: Tensor | None,
    geometry: Geometry,
    groups: int,
) -> Run:
    window = (geometry.stride, geometry.padding, geometry.dilation)
    if result == "y":
        return lambda: F.conv2d(x, weight, bias, *window, groups)
    mask = (result == "x", result == "weight", False)

    def run() -> Tensor | None:
        grads = torch.ops.aten.convolution_backward(grad, x, weight, None, *window, False, (0, 0), groups, mask)
        if result == "weight":
            return grads[1]
        return grads[0] if added is None else grads[0] + added

    return run


def _clients_as_channels(x: Tensor) -> Tensor:
    """Return x [clients, batch, channels, h, w] as [batch, clients * channels, h, w] in the same memory format."""
    channels_last = x.stride(2) == 1 and x.stride(4) != 1
    return (
        x.transpose(0, 1)
        .flatten(1, 2)
        .contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    )
