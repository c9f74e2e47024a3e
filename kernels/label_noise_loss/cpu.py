"""Loss under label noise with its gradient on a CPU, in few operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..noisy_targets.reference import noisy_targets
from . import reference


def label_noise_loss(
    logits: Tensor,
    targets: Tensor,
    clients: Tensor | None,
    step: Tensor | int,
    *,
    p: Tensor | float,
    seed: Tensor | int,
    with_grad: bool = False,
) -> tuple[Tensor, ...]:
    """See the reference. With the gradient it takes 13 operations, the reference with autograd 22.

    Of operations for 32 clients x 8 samples x 10 classes most of the time is the call, 2 us each.
    """
    if not with_grad:
        return reference.label_noise_loss(logits, targets, clients, step, p=p, seed=seed)
    noisy = targets
    if isinstance(p, Tensor) or p:
        assert clients is not None
        noisy = noisy_targets(targets, p=p, classes=logits.shape[-1], seed=seed, clients=clients, step=step)
    with torch.no_grad():
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_softmax, places = F.log_softmax(wide, -1), noisy.unsqueeze(-1)
        losses = -log_softmax.gather(-1, places).mean((-2, -1))
        ones = torch.ones_like(places, dtype=wide.dtype)
        grad = log_softmax.exp().scatter_add(-1, places, -ones) / noisy.shape[-1]
        return losses, (logits.argmax(dim=-1) == targets).sum(dim=-1), grad.to(logits.dtype)
