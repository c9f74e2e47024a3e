"""The loss under label noise with everything that a step wants of it, in plain torch; also the CPU path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..noisy_targets.reference import noisy_targets


def label_noise_loss(
    logits: Tensor, targets: Tensor, clients: Tensor | None, step: Tensor | int, *, p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Each client's mean negative log-likelihood of its noisy targets, and how often it is right about the clean ones.

        loss = mean over the batch of -log_softmax(logits)[noisy_targets(targets)]

    logits: [clients, batch, classes]        targets: int64 [clients, batch], in [0, classes)
    p: with which noisy_targets replaces a target; 0 is plain cross-entropy, for which clients may be None
    clients: int64 [clients]        step: a number or int64 [clients]
    Returns losses [clients] in float32 (float64 for float64 logits), which autograd knows, and int64 [clients], how
    often the largest logit, of equally large ones the first, is that of the target.
    """
    drawn = targets
    if p:
        assert clients is not None
        drawn = noisy_targets(targets, p=p, classes=logits.shape[-1], seed=seed, clients=clients, step=step)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.movedim(-1, 1), drawn, reduction="none").mean(dim=-1)
    return losses, (logits.detach().argmax(dim=-1) == targets).sum(dim=-1)
