"""What the Triton kernels are timed against: the same results by torch, prepared as torch is fastest.

Each function takes an op's arguments and returns a run that may be repeated. What a user would do once, before a loop
over steps, is done when it is made: rates become Python numbers, and images lie as the convolution wants them.
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
    """client_sgd as torch's foreach optimizers would do it, a tensor for each client."""
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


def foreach_mean(params: Tensor, total: Tensor, weight: float | Tensor, *, broadcast: bool = False) -> Run:
    """client_mean with foreach: rows are weighted and added in pairs until one is left."""
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
    """client_sgd_mean: the one after the other."""
    step, mean = foreach_sgd(params, *buffers, **options), foreach_mean(params, total, weight)

    def run() -> None:
        step()
        mean()

    return run


def grouped_convolution(need: str, **inputs: Any) -> Run:
    """One grouped convolution of torch on images [batch, clients * channels, h, w].

    need: "y", "x" or "weight", the result of the forward pass or the gradient that is computed
    """
    geometry: Geometry = inputs["geometry"]
    x, weight = _clients_as_channels(inputs["x"]), inputs["weight"].flatten(0, 1)
    bias, grad = inputs.get("bias"), inputs.get("grad")
    return _convolution(
        need,
        x,
        weight,
        None if bias is None else bias.flatten(),
        None if grad is None else _clients_as_channels(grad),
        geometry,
        groups=inputs["x"].shape[0] * geometry.groups,
    )


def looped_convolution(need: str, **inputs: Any) -> Run:
    """A convolution of torch for each client, as `grouped_convolution`; results are not gathered in one tensor."""
    geometry: Geometry = inputs["geometry"]
    bias, grad = inputs.get("bias"), inputs.get("grad")
    runs = [
        _convolution(
            need,
            inputs["x"][client],
            inputs["weight"][client],
            None if bias is None else bias[client],
            None if grad is None else grad[client],
            geometry,
            groups=geometry.groups,
        )
        for client in range(inputs["x"].shape[0])
    ]
    return lambda: [run() for run in runs]


def _convolution(
    need: str, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor | None, geometry: Geometry, groups: int
) -> Run:
    window = (geometry.stride, geometry.padding, geometry.dilation)
    if need == "y":
        return lambda: F.conv2d(x, weight, bias, *window, groups)
    mask = (need == "x", need == "weight", False)

    def run() -> Tensor | None:
        grads = torch.ops.aten.convolution_backward(grad, x, weight, None, *window, False, (0, 0), groups, mask)
        return grads[0] if need == "x" else grads[1]

    return run


def _clients_as_channels(x: Tensor) -> Tensor:
    """[batch, clients * channels, h, w], channels-last where x [clients, batch, channels, h, w] is."""
    last = x.stride(2) == 1 and x.stride(4) != 1
    return (
        x.transpose(0, 1)
        .flatten(1, 2)
        .contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    )
