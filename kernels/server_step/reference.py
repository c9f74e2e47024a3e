"""Step of the server on the difference between the clients' mean and their start; plain torch, also on a CPU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rule = Literal["adam", "yogi", "adagrad"]


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
    """Take one step of the server, in place.

        d <- mean - params
        m <- decay * m + gain * d
        u <- gain * d + decay * m  if nesterov else  m
        v <- second_decay * v + (1 - second_decay) * d^2                 adam
             v - (1 - second_decay) * d^2 * sign(v - d^2)                yogi
             v + d^2                                                     adagrad
        params <- params + rate * u                                      without a rule
                  params + rate * u / (sqrt(second_scale * v) + tau)     with a rule

    Sources: Reddi et al. 2021 (the rules), Hsu et al. 2019 (momentum), Wang et al. 2020 (SlowMo).

    Args:
        params: [n_params], the clients' start; becomes the new global model.
        mean: [n_params], their mean, of the dtype of params or wider.
        first: m, [n_params] of the dtype of params; None: u is gain * d.
        second: v, [n_params] of the dtype of params; None without a rule.
        rate: Rate of the server.
        decay: Decay of m.
        gain: Factor of d in m.
        nesterov: Look ahead along m.
        rule: Change of v.
        second_decay: Decay of v.
        second_scale: Correction of v's bias.
        tau: Added to the root.
    """
    difference = (mean - params).to(params.dtype)
    update = difference * gain
    if first is not None:
        first.mul_(decay).add_(update)
        update = update.add_(first, alpha=decay) if nesterov else first
    if second is None:
        params.add_(update, alpha=rate)
        return
    square = difference * difference
    if rule == "adam":
        second.mul_(second_decay).add_(square, alpha=1 - second_decay)
    elif rule == "yogi":
        second.sub_((second - square).sign_().mul_(square), alpha=1 - second_decay)
    else:
        second.add_(square)
    params.addcdiv_(update, (second * second_scale).sqrt_().add_(tau), value=rate)
