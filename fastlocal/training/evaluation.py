"""Accuracy and loss of one model on a whole split."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common import interrupts
from ..common.errors import UsageError
from ..data.labels import unknown_label
from ..data.sources.base import Source
from ..distributed.world import World
from ..params.losses import Combination, Loss, combination, count_correct
from ..params.precision import Numerics

# on two CPU cores ResNet-56 takes 3.3 s per 1,000 images in batches of 200 and 4.8 s in batches of 500, whose
# activations leave the cache; a GPU wants them large
BATCH = {"cpu": 200, "cuda": 1000}
BATCH_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Of a batch's inputs, which larger images reach first."""


Drawing = Callable[[int], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Evaluation:
    """What a model does on a split.

    loss: of all samples in one call, for torch's own losses; of any other the mean of batches, weighted by their sizes
    accuracies: one fraction per k of the samples whose targets count, empty where targets are not labels
    """

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
    gradients: bool = False,
    world: World | None = None,
    drawing: Drawing = nullcontext,
) -> Evaluation:
    """Evaluate a module in evaluation mode on every sample of a source; sums stay on the device until the end.

    Args:
        module: The model.
        source: The samples.
        loss: (outputs of one batch, targets) -> scalar.
        topk: The k of the counted right predictions, or none.
        numerics: Of the run.
        gradients: Whether the module or the loss takes derivatives.
        world: Ranks, which take a batch in turn and add up all batches' sums in the order of a single process.
        drawing: Makes the context of a batch's random numbers from its number.

    Raises:
        UsageError: A label is no output's number, or the loss counts none of the targets.
    """
    world = world or World.single()
    was_training = module.training
    module.eval()
    way = combination(loss)
    sums: list[Tensor] = []
    kind = source.device.type
    size = max(1, min(BATCH[kind], BATCH_BYTES[kind] // source.batch_bytes(1)))
    for begin in range(world.rank * size, len(source), world.size * size):
        interrupts.check_signals()
        batch = source.read_range(begin, begin + size)
        with torch.set_grad_enabled(gradients), drawing(begin // size), numerics.autocast():
            outputs = numerics.to_param_dtype(module(batch.inputs.clone()))  # which it may change
        with torch.set_grad_enabled(gradients):
            sums.append(_sums(outputs, batch.targets, loss, way, topk, begin).detach())
    module.train(was_training)
    told = world.all_gather_object(torch.stack(sums).tolist() if sums else [], "the evaluation")
    totals = [0.0] * (2 + (len(topk) + 1 if topk else 0))
    for place in range(-(-len(source) // size)):
        classes, sample, label, *batch_sums = told[place % world.size][place // world.size]
        if classes:
            raise UsageError(unknown_label(int(sample), int(label), int(classes)))
        totals = [total + value for total, value in zip(totals, batch_sums, strict=True)]
    if not (way.summed or totals[1]):
        raise UsageError(f"test: the loss counts none of the {len(source)} targets, so that it has no mean")
    counted = len(source) - (totals[-1] if topk else 0)
    accuracies = tuple(hits / counted if counted else 0.0 for hits in totals[2:-1])
    return Evaluation(totals[0] if way.summed else totals[0] / totals[1], accuracies)


def _sums(outputs: Tensor, targets: Tensor, loss: Loss, way: Combination, topk: tuple[int, ...], begin: int) -> Tensor:
    """What one batch adds, on its device, float64.

    First (classes, sample, label) of a label that is no output's number, zeros where there is none; then the loss, and
    what it is to be divided by; with `topk` the right predictions for each k, and how many targets do not count.
    """
    fault = torch.zeros(3, dtype=torch.float64, device=outputs.device)
    unknown = way.unknown(outputs, targets)
    if unknown is not None:  # looked at afterwards, as a GPU would have to be waited for
        place = unknown.flatten().int().argmax()
        label = targets.flatten().gather(0, place.reshape(1))[0].long()
        found = torch.full_like(place, outputs.shape[1]), begin + place // unknown[0].numel(), label
        fault = torch.stack(found) * unknown.any()
        targets = targets.masked_fill(unknown, 0)
    weight = way.weight_of(targets)
    value = loss(outputs, targets).double()
    if not way.summed:
        value = torch.where(weight > 0, value * weight, 0)  # the mean of no targets is NaN
    sums = [fault.double(), value.reshape(1), weight.reshape(1)]
    if topk:
        hits = count_correct(outputs, targets, topk, way.ignored)
        sums += [hits] if way.ignored is not None else [hits, hits.new_zeros(1)]
    return torch.cat(sums)
