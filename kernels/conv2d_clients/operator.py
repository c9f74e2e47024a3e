"""Stacked convolution as torch operators with rules for fake tensors, autograd and vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import AUTOTUNED, get, runs_triton
from ..gradient_rows import place_of
from ..stacking import fold, unfold
from . import im2col, loop, reference
from .geometry import Geometry, empty, empty_last

STRATEGIES = ("auto", "grouped", "loop", "im2col", "triton")
CONVOLUTIONS = tuple(sorted(AUTOTUNED))
"""Forward pass and gradients; they use Triton together or not at all."""
IN_TORCH = {"grouped": reference, "loop": loop, "im2col": im2col}
WINDOW = "int[] stride, int[] padding, int[] dilation, int groups, str strategy"

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
    "fastlocal::conv2d_clients", mutates_args=(), schema=f"(Tensor x, Tensor weight, Tensor? bias, {WINDOW}) -> Tensor"
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
    strategy = resolve(strategy, x, weight, geometry)
    if strategy == "triton":
        forward = get("conv2d_clients", "triton", x.device)
        return forward(x, weight, bias, geometry=geometry, tf32=allows_tf32())
    return IN_TORCH[strategy].conv2d_clients(x, weight, bias, geometry=geometry)


@torch.library.custom_op(
    "fastlocal::conv2d_clients_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, {WINDOW}, bool need_x, bool need_weight, Tensor? packed=None, "
    "Tensor? added=None) -> (Tensor, Tensor)",
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
    packed: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `conv2d_stacked` with respect to x and weight; an empty tensor if not needed.

    Args:
        packed: Of `conv2d_stacked_fused`, or None.
        added: What is added to the gradient of x, or None.
    """
    geometry = Geometry.from_sequences(stride, padding, dilation, groups)
    strategy = resolve(strategy, x, weight, geometry)
    if strategy == "triton":
        options: dict[str, Any] = {"geometry": geometry, "tf32": allows_tf32()}
        dx = dweight = None
        if need_x:
            input_grad = get("conv2d_clients_input_grad", "triton", x.device)
            dx = input_grad(grad, x, weight, **options, packed=packed, added=added)
        if need_weight:
            dweight = get("conv2d_clients_weight_grad", "triton", x.device)(grad, x, weight, **options)
    else:
        dx, dweight = IN_TORCH[strategy].conv2d_clients_backward(
            grad, x, weight, geometry=geometry, need_x=need_x, need_weight=need_weight
        )
        if dx is not None and added is not None:
            dx += added
    return x.new_empty(0) if dx is None else dx, weight.new_empty(0) if dweight is None else dweight


def allows_tf32() -> bool:
    """Return True if torch may round float32 operands of convolutions to TF32.

    `cudnn.allow_tf32` raises RuntimeError if a script has set the newer switch, which is read here.
    """
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(convolutions.fp32_precision == "tf32")


def resolve(strategy: str, x: Tensor, weight: Tensor, geometry: Geometry) -> str:
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    return choose(x, weight, geometry) if strategy == "auto" else strategy


def empty_result(x: Tensor, weight: Tensor, geometry: Geometry, strategy: str) -> Tensor:
    """Return memory for the result: Triton's is channels-last, others' as x."""
    last = resolve(strategy, x, weight, geometry) == "triton"
    return (empty_last if last else empty)(geometry.check(x, weight), x)


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
    return empty_result(x, weight, Geometry.from_sequences(stride, padding, dilation, groups), strategy)


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
    packed: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dx = empty(x.shape, x) if need_x else x.new_empty(0)
    return dx, weight.new_empty(weight.shape if need_weight else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.window = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gradients(ctx, grad, *ctx.saved_tensors)


def gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, packed: Tensor | None = None, added: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx, dweight = None, None
    geometry = Geometry.from_sequences(*ctx.window[:4])
    in_triton = need_weight and resolve(ctx.window[4], x, weight, geometry) == "triton"
    place = place_of(weight) if in_triton else None
    if place is not None:  # no operator: what one returns may not be a part of another tensor
        write = get("conv2d_clients_weight_grad", "triton", x.device)
        dweight = write(grad, x, weight, geometry=geometry, tf32=allows_tf32(), out=place)
    if need_x or need_weight and place is None:
        dx, found = conv2d_stacked_backward(
            grad, x, weight, *ctx.window, need_x, need_weight and place is None, packed, added
        )
        dweight = found if place is None else dweight
    dbias = grad.sum(dim=(1, 3, 4)) if need_bias else None
    return (dx if need_x else None), (dweight if need_weight else None), dbias, *(None for _ in ctx.window)


conv2d_stacked.register_autograd(_backward, setup_context=_save)


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
    size, (need_x, need_weight, packed, added) = info.batch_size, rest[5:9]
    stacked = [fold(tensor, dim, size) for tensor, dim in zip((grad, x, weight), in_dims[:3], strict=True)]
    others = (None if t is None else fold(t, dim, size) for t, dim in zip((packed, added), in_dims[10:], strict=True))
    dx, dweight = conv2d_stacked_backward(*stacked, *rest[:7], *others)
    empties = x.new_empty(size, 0), weight.new_empty(size, 0)
    return (unfold(dx, size) if need_x else empties[0], unfold(dweight, size) if need_weight else empties[1]), (0, 0)
