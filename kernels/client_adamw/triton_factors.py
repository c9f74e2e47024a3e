"""Count of the AdamW steps of all clients, and the factors that follow from it."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

CLIENTS = 128
"""Clients of a program."""


@triton.jit
def _client_adamw_factors(
    steps_ptr,
    factors_ptr,
    learning_rate_ptr,
    active_ptr,
    weight_decay_ptr,
    clients,
    steps_stride,
    learning_rate_stride,
    active_stride,
    LOG2_BETA1: tl.constexpr,
    LOG2_BETA2: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the step of each active client, and write its factors [3, clients].

    They are learning_rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t) and learning_rate * weight_decay, computed in float64:
    in float32, 1 - beta2^t of a first step has four digits.
    """
    client = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = client < clients
    steps = tl.load(steps_ptr + client * steps_stride, mask=inside, other=0.0)
    if active_ptr is not None:
        steps += tl.load(active_ptr + client * active_stride, mask=inside, other=0).to(tl.float64)
    else:
        steps += 1.0
    tl.store(steps_ptr + client * steps_stride, steps, mask=inside)
    rate = tl.load(learning_rate_ptr + client * learning_rate_stride, mask=inside, other=0.0).to(tl.float64)
    if weight_decay_ptr is not None:
        decay = tl.load(weight_decay_ptr + client, mask=inside, other=0.0).to(tl.float64)
    else:
        decay = tl.full((), WEIGHT_DECAY, tl.float64)
    taken = tl.where(steps > 0, steps, 1.0)  # an inactive client that has taken none needs no factors
    bias1 = 1.0 - tl.exp2(taken * tl.full((), LOG2_BETA1, tl.float64))
    bias2 = 1.0 - tl.exp2(taken * tl.full((), LOG2_BETA2, tl.float64))
    tl.store(factors_ptr + client, rate / bias1, mask=inside)
    tl.store(factors_ptr + clients + client, 1.0 / tl.sqrt(bias2), mask=inside)
    tl.store(factors_ptr + 2 * clients + client, rate * decay, mask=inside)


def count_steps(
    steps: Tensor,
    learning_rate: Tensor,
    active: Tensor | None,
    weight_decay: Tensor | float,
    beta1: float,
    beta2: float,
) -> Tensor:
    """Count a step of each active client, and return the factors float64 [3, clients] of `_client_adamw_factors`.

    Args:
        steps: float64 [clients], changed in place.
        learning_rate: [clients].
        active: bool [clients], or None for all.
        weight_decay: A number, or [clients] or [].
        beta1: Decay of the means of gradients.
        beta2: Decay of the means of their squares.
    """
    clients = len(steps)
    decays = weight_decay.expand(clients).contiguous() if isinstance(weight_decay, Tensor) else None
    factors = torch.empty(3, clients, dtype=torch.float64, device=steps.device)
    _client_adamw_factors[(triton.cdiv(clients, CLIENTS),)](
        steps_ptr=steps,
        factors_ptr=factors,
        learning_rate_ptr=learning_rate,
        active_ptr=active,
        weight_decay_ptr=decays,
        clients=clients,
        steps_stride=steps.stride(0),
        learning_rate_stride=learning_rate.stride(0),
        active_stride=0 if active is None else active.stride(0),
        LOG2_BETA1=_log2(beta1),
        LOG2_BETA2=_log2(beta2),
        WEIGHT_DECAY=0.0 if isinstance(weight_decay, Tensor) else weight_decay,
        BLOCK=CLIENTS,
        num_warps=CLIENTS // 32,
    )
    return factors


def _log2(beta: float) -> float:
    return math.log2(beta) if beta else -1e9  # 2^(-1e9 t) is 0
