"""The optimizer of the clients and the state that it keeps for each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .client_stack import MOMENTUM, SQUARE, STEPS


@dataclass(frozen=True)
class AdamW:
    """Settings of torch.optim.AdamW beside the learning rate and the weight decay.

    Attributes:
        beta1: Decay of the means of gradients.
        beta2: Decay of the means of their squares.
        eps: Added to the root of the means of squares.
    """

    beta1: float
    beta2: float
    eps: float


def start_moments(row: Tensor, momentum: float, adamw: AdamW | None) -> dict[str, Tensor]:
    """Return {name: start value} of the state of one client's optimizer.

    Args:
        row: [n_params], parameters of a client.
        momentum: Momentum factor of SGD.
        adamw: AdamW's settings, or None for SGD.
    """
    if adamw is not None:
        steps = torch.zeros((), dtype=torch.float64, device=row.device)
        return {MOMENTUM: torch.zeros_like(row), SQUARE: torch.zeros_like(row), STEPS: steps}
    return {MOMENTUM: torch.zeros_like(row)} if momentum else {}
