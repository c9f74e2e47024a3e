"""Accuracy and loss of one model on a whole split."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import interrupts
from .data.sources.base import Source
from .losses import Loss, count_correct
from .precision import Numerics
from .world import World

# on two CPU cores ResNet-56 takes 3.3 s per 1,000 images in batches of 200 and 4.8 s in batches of 500, whose
# activations leave the cache; a GPU wants them large
BATCH = {"cpu": 200, "cuda": 1000}
BATCH_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Of a batch's inputs, which larger images reach first."""


Drawing = Callable[[int], AbstractContextManager[Any]]


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
    world: World | None = None,
    drawing: Drawing = nullcontext,
) -> Evaluation:
    """`module` in evaluation mode on every sample of `source`; sums stay on the device until the end.

    drawing: makes of a batch's number what the module draws random numbers within
    world: ranks that take a batch in turn, and add up all batches' sums in the order in which one process would
    """
    world = world or World.alone()
    was_training = module.training
    module.eval()
    sums: list[Tensor] = []
    kind = source.device.type
    size = max(1, min(BATCH[kind], BATCH_BYTES[kind] // source.batch_bytes(1)))
    for begin in range(world.rank * size, len(source), world.size * size):
        interrupts.poll()
        batch = source.rows(begin, begin + size)
        with drawing(begin // size), numerics.autocast():
            outputs = numerics.full(module(batch.inputs))
        sums.append((loss(outputs, batch.targets).double() * batch.inputs.shape[0]).reshape(1))
        if topk:
            sums[-1] = torch.cat([sums[-1], count_correct(outputs, batch.targets, topk).double()])
    module.train(was_training)
    told = world.exchange(torch.stack(sums).tolist() if sums else [], "the evaluation")
    totals = [0.0] * (1 + len(topk))
    for place in range(-(-len(source) // size)):
        batch_sums = told[place % world.size][place // world.size]
        totals = [total + value for total, value in zip(totals, batch_sums, strict=True)]
    return Evaluation(totals[0] / len(source), tuple(total / len(source) for total in totals[1:]))
