"""Loss under label noise and counts of correct predictions, in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..noisy_targets.reference import noisy_targets


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
    """Return each client's mean negative log-likelihood of noisy targets, and its correct predictions of clean ones.

        loss = mean over the batch of -log_softmax(logits)[noisy_targets(targets)]

    Args:
        logits: [clients, batch, classes].
        targets: int64 [clients, batch], in [0, classes).
        clients: int64 [clients]; None if p is the number 0.
        step: Global local step, a number or int64 [clients].
        p: Probability that noisy_targets replaces a target, a number or floating [clients]; 0 is plain cross-entropy.
        seed: Seed of the run, a number or int64 [clients].
        with_grad: Also return the gradient of the sum of the losses, as logits; nothing is differentiable then.

    Returns:
        Losses [clients] in float32 (float64 for float64 logits), differentiable; and int64 [clients], how often the
        first of the largest logits is the target's.
    """
    if with_grad:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            losses, correct = label_noise_loss(leaf, targets, clients, step, p=p, seed=seed)
            (grad,) = torch.autograd.grad(losses.sum(), [leaf])
        return losses.detach(), correct, grad
    noisy = targets
    if isinstance(p, Tensor) or p:
        assert clients is not None
        noisy = noisy_targets(targets, p=p, classes=logits.shape[-1], seed=seed, clients=clients, step=step)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.movedim(-1, 1), noisy, reduction="none").mean(dim=-1)
    return losses, (logits.detach().argmax(dim=-1) == targets).sum(dim=-1)
