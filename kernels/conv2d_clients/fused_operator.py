"""Stacked convolution with what the kernels around it use, as a torch operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import get
from ..stacking import fold, unfold
from . import reference
from .geometry import Geometry, pack
from .operator import IN_TORCH, WINDOW, allows_tf32, empty_result, gradients, resolve


@torch.library.custom_op(
    "fastlocal::conv2d_clients_fused",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {WINDOW}, float? eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def conv2d_stacked_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return `conv2d_stacked` with what the kernels around it use; only the images and `fork` are differentiable.

    Returns:
        The images; their mean and rstd as norm_act has them for BatchNorm, [clients, 1, out], or empty without `eps`
        (the gradient of norm_act contains that of its statistics); the packed filters, or empty where the backward pass
        reads them in another order; and `fork`, a tensor of x's shape without values: what flows back into it is added
        to the gradient of x within the kernel that computes that.
    """
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    strategy = resolve(strategy, x, weight, geometry)
    mean = rstd = packed = x.new_empty(0)
    if strategy == "triton":
        forward = get("conv2d_clients", "triton", x.device)
        packed = pack(weight, x.dtype)
        options: dict[str, Any] = {"geometry": geometry, "statistics_eps": eps, "tf32": allows_tf32()}
        result = forward(x, weight, bias, **options, packed=packed)
        y, mean, rstd = (result, mean, rstd) if eps is None else result
        if x.element_size() > 2:  # the gradient of x packs them in another order
            packed = x.new_empty(0)
    else:
        y = IN_TORCH[strategy].conv2d_clients(x, weight, bias, geometry=geometry)
        if eps is not None:
            mean, rstd = reference.statistics(y, eps)
    mean, rstd, packed = (each if each.dim() > 1 else x.new_empty(0) for each in (mean, rstd, packed))
    return y, mean, rstd, packed, x.new_empty(1).expand(x.shape)


@conv2d_stacked_fused.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    eps: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    y = empty_result(x, weight, geometry, strategy)
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (0,) if eps is None else (y.shape[0], 1, y.shape[2])
    mean, rstd = (x.new_empty(shape, dtype=x.dtype if eps is None else dtype) for _ in range(2))
    in_triton = resolve(strategy, x, weight, geometry) == "triton"
    keeps = in_triton and x.element_size() == 2
    packed = x.new_empty(weight.permute(0, 1, 3, 4, 2).shape if keeps else (0,))
    return y, mean, rstd, packed, x.new_empty(1).expand(x.shape)


def _save_fused(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, *ctx.window, _ = inputs
    _, mean, rstd, packed, _ = output
    ctx.save_for_backward(x, weight, packed)
    ctx.mark_non_differentiable(mean, rstd, packed)
    ctx.set_materialize_grads(False)


def _backward_fused(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad, added = grads[0], grads[-1]
    if grad is None:
        return added, *(None for _ in range(len(ctx.window) + 3))
    x, weight, packed = ctx.saved_tensors
    return *gradients(ctx, grad, x, weight, packed if packed.dim() > 1 else None, added), None


conv2d_stacked_fused.register_autograd(_backward_fused, setup_context=_save_fused)


@conv2d_stacked_fused.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    stacked = (None if t is None else fold(t, dim, size) for t, dim in zip((x, weight, bias), in_dims, strict=False))
    results = conv2d_stacked_fused(*stacked, *window)
    unfolded = (unfold(each, size) if each.dim() > 1 else each.new_empty(size, 0) for each in results)
    return tuple(unfolded), (0,) * len(results)
