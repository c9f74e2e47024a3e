"""Stacked convolution as torch operators with rules for fake tensors, autograd and vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import AUTOTUNED, get, runs_triton
from ..stacking import fold, unfold
from . import im2col, loop, reference
from .geometry import Geometry, empty

STRATEGIES = ("auto", "grouped", "loop", "im2col", "triton")
CONVOLUTIONS = tuple(sorted(AUTOTUNED))
"""Forward pass and gradients; they use Triton together or not at all."""
_IN_TORCH = {"grouped": reference, "loop": loop, "im2col": im2col}
_WINDOW = "int[] stride, int[] padding, int[] dilation, int groups, str strategy"


LOOP_FROM = 5e6
"""FLOPs of one client's forward pass from which the loop is faster: there, the grouped convolution has 0.5 to 0.9 times
its speed (bench/results/cpu/stacked_cpu.csv)."""


def takes_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" selects Triton, forward and backward."""
    return dtype != torch.float64 and runs_triton(device, *CONVOLUTIONS)


def choose(x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    """Return the strategy of "auto" for these images and filters on their device."""
    if takes_triton(x.device, x.dtype):
        return "triton"
    _, batch, out, height, width = geometry.check(x, weight)
    terms = weight.shape[2] * weight.shape[3] * weight.shape[4]
    return "loop" if 2 * batch * out * height * width * terms >= LOOP_FROM else "grouped"


@torch.library.custom_op(
    "fastlocal::conv2d_clients", mutates_args=(), schema=f"(Tensor x, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor"
)
def conv2d_stacked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
) -> Tensor:
    """`conv2d_clients` of reference.py with rules for autograd, vmap and torch.compile; pairs are (height, width).

    Args:
        strategy: "grouped" (reference.py), "loop", "im2col" (plain torch), "triton", or "auto" (see `choose`). "triton"
            sums without atomics, and is deterministic for a given tile.

    Raises:
        ValueError: The strategy is unknown, the shapes do not fit, or "triton" cannot run.
    """
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    strategy = _resolve(strategy, x, weight, geometry)
    if strategy == "triton":
        forward = get("conv2d_clients", "triton", x.device)
        return forward(x, weight, bias, geometry=geometry, tf32=allows_tf32())
    return _IN_TORCH[strategy].conv2d_clients(x, weight, bias, geometry=geometry)


@torch.library.custom_op(
    "fastlocal::conv2d_clients_statistics",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor? bias, {_WINDOW}, float eps) -> (Tensor, Tensor, Tensor)",
)
def conv2d_stacked_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `conv2d_stacked` with the mean and rstd of its result that norm_act has for BatchNorm, [clients, 1, out].

    Only the images are differentiable: the gradient of norm_act contains that of its statistics.
    """
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    strategy = _resolve(strategy, x, weight, geometry)
    if strategy == "triton":
        forward = get("conv2d_clients", "triton", x.device)
        return forward(x, weight, bias, geometry=geometry, statistics_eps=eps, tf32=allows_tf32())
    y = _IN_TORCH[strategy].conv2d_clients(x, weight, bias, geometry=geometry)
    return y, *reference.statistics(y, eps)


@torch.library.custom_op(
    "fastlocal::conv2d_clients_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, {_WINDOW}, bool need_x, bool need_weight) -> (Tensor, Tensor)",
)
def conv2d_stacked_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `conv2d_stacked` with respect to x and weight; an empty tensor if not needed."""
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    strategy = _resolve(strategy, x, weight, geometry)
    if strategy == "triton":
        tf32 = allows_tf32()
        dx, dweight = (
            get(op, "triton", x.device)(grad, x, weight, geometry=geometry, tf32=tf32) if need else None
            for op, need in (("conv2d_clients_input_grad", need_x), ("conv2d_clients_weight_grad", need_weight))
        )
    else:
        dx, dweight = _IN_TORCH[strategy].conv2d_clients_backward(
            grad, x, weight, geometry=geometry, need_x=need_x, need_weight=need_weight
        )
    return x.new_empty(0) if dx is None else dx, weight.new_empty(0) if dweight is None else dweight


def allows_tf32() -> bool:
    """Return True if torch may round float32 operands of convolutions to TF32.

    `cudnn.allow_tf32` raises RuntimeError if a script has set the newer switch, which is read here.
    """
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(convolutions.fp32_precision == "tf32")


def _resolve(strategy: str, x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    return choose(x, weight, geometry) if strategy == "auto" else strategy


@conv2d_stacked.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
) -> Tensor:
    return _like_result(x, weight, Geometry.from_sequences(stride, padding, dilation, groups), strategy)


def _like_result(x: Tensor, weight: Tensor, geometry: Geometry, strategy: str) -> Tensor:
    """Return memory for the result: Triton's is channels-last, others' as x."""
    shape = geometry.check(x, weight)
    if _resolve(strategy, x, weight, geometry) != "triton":
        return empty(shape, x)
    clients, batch, channels, height, width = shape
    return x.new_empty((clients, batch, height, width, channels)).permute(0, 1, 4, 2, 3)


@conv2d_stacked_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    dx = empty(x.shape, x) if need_x else x.new_empty(0)
    return dx, weight.new_empty(weight.shape if need_weight else 0)


@conv2d_stacked_statistics.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    strategy: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    y = _like_result(x, weight, Geometry.from_sequences(stride, padding, dilation, groups), strategy)
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty((y.shape[0], 1, y.shape[2]), dtype=dtype) for _ in range(2))
    return y, mean, rstd


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.window = inputs
    ctx.save_for_backward(x, weight)


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, *ctx.window, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dweight = None, None
    if need_x or need_weight:
        dx, dweight = conv2d_stacked_backward(grad, x, weight, *ctx.window, need_x, need_weight)
    dbias = grad.sum(dim=(1, 3, 4)) if need_bias else None
    return (dx if need_x else None), (dweight if need_weight else None), dbias, *(None for _ in ctx.window)


def _backward_statistics(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * (len(ctx.window) + 4)
    return *_backward(ctx, grad), None


conv2d_stacked.register_autograd(_backward, setup_context=_save)
conv2d_stacked_statistics.register_autograd(_backward_statistics, setup_context=_save_statistics)


@conv2d_stacked_statistics.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    size = info.batch_size
    stacked = (None if t is None else fold(t, dim, size) for t, dim in zip((x, weight, bias), in_dims, strict=False))
    y, mean, rstd = (unfold(result, size) for result in conv2d_stacked_statistics(*stacked, *window))
    return (y, mean, rstd), (0, 0, 0)


@conv2d_stacked.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *window: Any
) -> tuple[Tensor, int]:
    size, (x_dim, weight_dim, bias_dim) = info.batch_size, in_dims[:3]
    groups = window[3]
    if weight_dim is None and bias_dim is None:  # the same filters: more images for each client
        y = conv2d_stacked(fold(x, x_dim, size, into=1), weight, bias, *window)
        return unfold(y, size, at=1), 1
    if x_dim is None and groups == 1:  # the same images: more filters for each client
        biases = None if bias is None else fold(bias, bias_dim, size, into=1)
        y = conv2d_stacked(x, fold(weight, weight_dim, size, into=1), biases, *window)
        return unfold(y, size, at=2), 2
    biases = None if bias is None else fold(bias, bias_dim, size)
    return unfold(conv2d_stacked(fold(x, x_dim, size), fold(weight, weight_dim, size), biases, *window), size), 0


@conv2d_stacked_backward.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    size, (need_x, need_weight) = info.batch_size, rest[-2:]
    stacked = (fold(tensor, dim, size) for tensor, dim in zip((grad, x, weight), in_dims[:3], strict=True))
    dx, dweight = conv2d_stacked_backward(*stacked, *rest)
    empties = x.new_empty(size, 0), weight.new_empty(size, 0)
    return (unfold(dx, size) if need_x else empties[0], unfold(dweight, size) if need_weight else empties[1]), (0, 0)
