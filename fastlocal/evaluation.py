"""Accuracy and loss of one model on a whole split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .data.sources.resident import ResidentSource
from .losses import Loss, count_correct
from .precision import Numerics

BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over samples        accuracies: one fraction per k, empty where targets are not labels"""

    loss: float
    accuracies: tuple[float, ...]


@torch.no_grad()
def evaluate(
    module: nn.Module,
    source: ResidentSource,
    *,
    loss: Loss,
    topk: tuple[int, ...],
    numerics: Numerics,
) -> Evaluation:
    """`module` in evaluation mode on every sample of `source`; sums stay on the device until the end."""
    was_training = module.training
    module.eval()
    total = torch.zeros((), dtype=torch.float64, device=source.device)
    correct = torch.zeros(len(topk), dtype=torch.float64, device=source.device)
    for begin in range(0, len(source), BATCH):
        batch = source.rows(begin, begin + BATCH)
        with numerics.autocast():
            outputs = numerics.full(module(batch.inputs))
        total += loss(outputs, batch.targets).double() * batch.inputs.shape[0]
        if topk:
            correct += count_correct(outputs, batch.targets, topk)
    module.train(was_training)
    return Evaluation(total.item() / len(source), tuple((correct / len(source)).tolist()))
