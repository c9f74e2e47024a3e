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
    schema=f"(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, {_OPTIONS}, Tensor? mean=None, "
    "Tensor? rstd=None, Tensor? fork=None) -> (Tensor, Tensor, Tensor)",
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
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    fork: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_act` of reference.py with rules for autograd, vmap and torch.compile; only y is differentiable.

    With `fork`, of conv2d_stacked_fused, the gradient of the residual flows there and not to the residual.

    `backend` is that of `kernels.get`, but "auto" selects the reference for float64. Raises ValueError for shapes that
    do not fit and for a backend that cannot run.
    """
    function = get("norm_act", _resolve(backend, x), x.device)
    options = {"groups": groups, "eps": eps, "activation": activation}
    y, mean_used, rstd_used = function(x, weight, bias, residual, **options, mean=mean, rstd=rstd)
    if mean is None:
        return y, mean_used, rstd_used
    return y, mean.new_empty(0), mean.new_empty(0)  # an operator returns no tensor that it was given


@torch.library.custom_op(
    "fastlocal::norm_act_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, Tensor rstd, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)",
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `norm_act_stacked`: dx, those of weight and bias in one, dresidual or an empty tensor."""
    function = get("norm_act_backward", _resolve(backend, x), x.device)
    saved = (x, weight, bias, residual, mean, rstd)
    dx, daffine, dresidual = function(grad, *saved, groups=groups, activation=activation)
    return dx, daffine, x.new_empty(0) if dresidual is None else dresidual


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
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    fork: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, weight, bias, residual, groups, activation, mean, rstd)
    if mean is not None:
        return torch.empty_like(x), mean.new_empty(0), mean.new_empty(0)
    dtype = torch.promote_types(x.dtype, torch.float32)
    used = [x.new_empty(statistics_shape(x, groups), dtype=dtype) for _ in range(2)]
    return torch.empty_like(x), used[0], used[1]


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
) -> tuple[Tensor, Tensor, Tensor]:
    daffine = mean.new_empty((2, x.shape[0], x.shape[2]))
    return torch.empty_like(x), daffine, x.new_empty(0) if residual is None else torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, groups, eps, activation, backend, mean, rstd, fork = inputs
    ctx.options, ctx.forks = (groups, eps, activation, backend), fork is not None
    ctx.save_for_backward(*tensors, *(output[1:] if mean is None else (mean, rstd)))
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * (len(ctx.options) + 2)
    if grad is None:
        return None, None, None, None, *rest, None
    x, weight, bias, residual, mean, rstd = ctx.saved_tensors
    dx, daffine, dresidual = norm_act_stacked_backward(grad, x, weight, bias, residual, mean, rstd, *ctx.options)
    added = None if residual is None else dresidual.to(residual.dtype)
    return (
        dx,
        None if weight is None else daffine[0].to(weight.dtype),
        None if bias is None else daffine[1].to(bias.dtype),
        None if ctx.forks else added,
        *rest,
        added if ctx.forks else None,
    )


norm_act_stacked.register_autograd(_backward, setup_context=_save)


@norm_act_stacked.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    size, known = info.batch_size, len(inputs) > 8 and inputs[8] is not None
    y, *used = norm_act_stacked(*_fold(size, in_dims, inputs))
    mean, rstd = (each.new_empty(size, 0) if known else unfold(each, size) for each in used)
    return (unfold(y, size), mean, rstd), (0, 0, 0)


@norm_act_stacked_backward.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    size = info.batch_size
    dx, daffine, dresidual = norm_act_stacked_backward(*_fold(size, in_dims, inputs))
    has_residual = inputs[4] is not None
    dresidual = unfold(dresidual, size) if has_residual else dresidual.new_empty(size, 0)
    return (unfold(dx, size), unfold(daffine, size, at=1), dresidual), (0, 1, 0)


def _fold(size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[Any]:
    return [
        fold(value, dim, size) if isinstance(value, Tensor) else value
        for value, dim in zip(inputs, in_dims, strict=True)
    ]
