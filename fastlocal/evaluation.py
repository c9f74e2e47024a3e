"""Accuracy and loss of one model on a whole split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from . import interrupts
from .data.sources.base import Source
from .losses import Loss, count_correct
from .precision import Numerics

# on two CPU cores ResNet-56 takes 3.3 s per 1,000 images in batches of 200 and 4.8 s in batches of 500, whose
# activations leave the cache; a GPU wants them large
BATCH = {"cpu": 200, "cuda": 1000}
BATCH_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Of a batch's inputs, which larger images reach first."""


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over samples        accuracies: one fraction per k, empty where targets are not labels"""

    loss: float
    accuracies: tuple[float, ...]


@torch.no_grad()
def evaluate(
    module: nn.Module,
    source: Source,
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
    kind = source.device.type
    size = max(1, min(BATCH[kind], BATCH_BYTES[kind] // source.batch_bytes(1)))
    for begin in range(0, len(source), size):
        interrupts.poll()
        batch = source.rows(begin, begin + size)
        with numerics.autocast():
            outputs = numerics.full(module(batch.inputs))
        total += loss(outputs, batch.targets).double() * batch.inputs.shape[0]
        if topk:
            correct += count_correct(outputs, batch.targets, topk)
    module.train(was_training)
    return Evaluation(total.item() / len(source), tuple((correct / len(source)).tolist()))
