"""norm_act as torch operators with rules for fake tensors, autograd and vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import get, runs_triton
from ..stacking import fold, unfold
from .reference import check, statistics_shape

_OPTIONS = "int groups, float eps, str activation, str backend"


def faster_than_torch(x: Tensor) -> bool:
    """Return True if norm_act is faster on this device than torch's own norms under vmap.

    On CPUs the reference takes 1.8 to 3.3 times as long.
    """
    return x.dtype != torch.float64 and runs_triton(x.device, "norm_act", "norm_act_backward")


@torch.library.custom_op(
    "fastlocal::norm_act",
    mutates_args=(),
    schema=f"(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def norm_act_stacked(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_act` of reference.py with rules for autograd, vmap and torch.compile; only y is differentiable.

    `backend` is that of `kernels.get`, but "auto" selects the reference for float64. Raises ValueError for shapes that
    do not fit and for a backend that cannot run.
    """
    function = get("norm_act", _resolve(backend, x), x.device)
    return function(x, weight, bias, residual, groups=groups, eps=eps, activation=activation)


@torch.library.custom_op(
    "fastlocal::norm_act_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def norm_act_stacked_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `norm_act_stacked`; without a residual, dresidual is empty."""
    function = get("norm_act_backward", _resolve(backend, x), x.device)
    saved = (x, weight, bias, residual, mean, rstd)
    dx, dweight, dbias, dresidual = function(grad, *saved, groups=groups, activation=activation)
    return dx, dweight, dbias, x.new_empty(0) if dresidual is None else dresidual


def _resolve(backend: str, x: Tensor) -> str:
    return "reference" if backend == "auto" and x.dtype == torch.float64 else backend


@norm_act_stacked.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, weight, bias, residual, groups, activation)
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(statistics_shape(x, groups), dtype=dtype) for _ in range(2))
    return torch.empty_like(x), mean, rstd


@norm_act_stacked_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    eps: float,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dweight, dbias = (mean.new_empty((x.shape[0], x.shape[2])) for _ in range(2))
    return torch.empty_like(x), dweight, dbias, x.new_empty(0) if residual is None else torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, groups, eps, activation, backend = inputs
    ctx.options = groups, eps, activation, backend
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias, dresidual = norm_act_stacked_backward(grad, x, weight, bias, residual, mean, rstd, *ctx.options)
    return (
        dx,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        None if residual is None else dresidual.to(residual.dtype),
        *(None for _ in ctx.options),
    )


norm_act_stacked.register_autograd(_backward, setup_context=_save)


@norm_act_stacked.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    results = norm_act_stacked(*_fold(info.batch_size, in_dims, inputs))
    y, mean, rstd = (unfold(result, info.batch_size) for result in results)
    return (y, mean, rstd), (0, 0, 0)


@norm_act_stacked_backward.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], tuple[int, int, int, int]]:
    size = info.batch_size
    *results, dresidual = norm_act_stacked_backward(*_fold(size, in_dims, inputs))
    dx, dweight, dbias = (unfold(result, size) for result in results)
    has_residual = inputs[4] is not None
    dresidual = unfold(dresidual, size) if has_residual else dresidual.new_empty(size, 0)
    return (dx, dweight, dbias, dresidual), (0, 0, 0, 0)


def _fold(size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    return [
        fold(value, dim, size) if isinstance(value, Tensor) else value
        for value, dim in zip(inputs, in_dims, strict=True)
    ]
