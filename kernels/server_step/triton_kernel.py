"""Step of the server: every buffer is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import expect
from ..transfers import to_device
from ..triton_rows import load
from .reference import Rule


@triton.jit
def _step_of_columns(
    params_ptr, mean_ptr, first_ptr, second_ptr, scalars_ptr, inside, NESTEROV: tl.constexpr, RULE: tl.constexpr
):
    compute: tl.constexpr = tl.float64 if params_ptr.dtype.scalar.element_ty == tl.float64 else tl.float32
    rate = tl.load(scalars_ptr).to(compute)
    decay = tl.load(scalars_ptr + 1).to(compute)
    gain = tl.load(scalars_ptr + 2).to(compute)
    before = load(params_ptr, inside)
    mean = load(mean_ptr, inside)
    # in the wider dtype: the difference of two float32 roundings would lose the digits of a small step
    difference = (mean - before.to(mean.dtype)).to(compute)
    update = gain * difference
    if first_ptr is not None:
        first = decay * load(first_ptr, inside).to(compute) + update
        tl.store(first_ptr, first.to(first_ptr.dtype.scalar.element_ty), mask=inside)
        if NESTEROV:
            update += decay * first
        else:
            update = first
    step = rate * update
    if second_ptr is not None:
        second_decay = tl.load(scalars_ptr + 3).to(compute)
        kept = tl.load(scalars_ptr + 4).to(compute)
        scale = tl.load(scalars_ptr + 5).to(compute)
        tau = tl.load(scalars_ptr + 6).to(compute)
        second = load(second_ptr, inside).to(compute)
        square = difference * difference
        if RULE == "adam":
            second = second_decay * second + kept * square
        elif RULE == "yogi":
            sign = (second > square).to(compute) - (second < square).to(compute)
            second -= kept * square * sign
        else:
            second += square
        tl.store(second_ptr, second.to(second_ptr.dtype.scalar.element_ty), mask=inside)
        step /= tl.sqrt_rn(second * scale) + tau if compute == tl.float32 else tl.sqrt(second * scale) + tau
    after = before.to(compute) + step
    tl.store(params_ptr, after.to(params_ptr.dtype.scalar.element_ty), mask=inside)


@triton.jit
def _server_step(
    params_ptr,
    mean_ptr,
    first_ptr,
    second_ptr,
    scalars_ptr,
    n_params,
    NESTEROV: tl.constexpr,
    RULE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_params
    first = first_ptr
    if first_ptr is not None:
        first += columns
    second = second_ptr
    if second_ptr is not None:
        second += columns
    if (tl.program_id(0).to(tl.int64) + 1) * BLOCK <= n_params:
        _step_of_columns(params_ptr + columns, mean_ptr + columns, first, second, scalars_ptr, None, NESTEROV, RULE)
    else:
        _step_of_columns(params_ptr + columns, mean_ptr + columns, first, second, scalars_ptr, inside, NESTEROV, RULE)


@torch.no_grad()
def server_step(
    params: Tensor,
    mean: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    *,
    rate: float,
    decay: float = 0.0,
    gain: float = 1.0,
    nesterov: bool = False,
    rule: Rule | None = None,
    second_decay: float = 0.0,
    second_scale: float = 1.0,
    tau: float = 0.0,
) -> None:
    """Take one step of the server, in place; as the reference.

    Raises ValueError for a tensor of another shape or memory layout.
    """
    shape = (params.numel(),)
    for name, buffer in (("params", params), ("mean", mean), ("first", first), ("second", second)):
        if buffer is not None:
            expect(name, buffer, shape, params.device)
    if params.numel() == 0:
        return
    # a tensor: floats would be rounded to float32
    numbers = [rate, decay, gain, second_decay, 1 - second_decay, second_scale, tau]
    scalars = to_device(torch.tensor(numbers, dtype=torch.float64), params.device)
    block = 1024 if params.dtype != torch.float64 else 512
    _server_step[(triton.cdiv(params.numel(), block),)](
        params_ptr=params,
        mean_ptr=mean,
        first_ptr=first,
        second_ptr=second,
        scalars_ptr=scalars,
        n_params=params.numel(),
        NESTEROV=nesterov,
        RULE=rule or "",
        BLOCK=block,
        num_warps=4,
    )
