"""Accuracy and loss of one model on a whole split."""

from __future__ import annotations

import math
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
# activations exceed the cache; a GPU is faster with large batches
BATCH = {"cpu": 200, "cuda": 1000}
BATCH_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
"""Limit on the inputs of a batch; large images reach it before BATCH."""


RandomContext = Callable[[int], AbstractContextManager[Any]]
"""Maps the number of a batch to the context in which the module draws random numbers for it."""


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracies of a model on a split.

    Attributes:
        loss: Loss of all samples in one call for torch's own losses; for any other loss the mean of the batches,
            weighted by their sizes.
        accuracies: Fraction of the counted targets, one per k of top-k; empty if the targets are not labels.
    """

    loss: float
    accuracies: tuple[float, ...]


def perplexity(loss: float) -> float:
    """Return exp(loss) of a mean loss per token; infinity beyond the range of floats."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


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
    random_context: RandomContext = nullcontext,
) -> Evaluation:
    """Evaluate `module` in evaluation mode on every sample of `source`.

    Sums stay on the device until the last batch, so that a GPU is not synchronized in between.

    Args:
        module: The model; it returns to its training mode afterwards.
        source: The samples.
        loss: The loss.
        topk: The k of the accuracies; empty if the targets are not labels.
        numerics: Number formats of the run.
        gradients: Whether the module or the loss takes derivatives.
        world: Ranks that share the batches. They add the sums of all batches in the order of a single process.
        random_context: Random numbers of the module, by batch.

    Raises:
        UsageError: A label is not the number of an output, or the loss counts none of the targets.
    """
    world = world or World.single()
    was_training = module.training
    module.eval()
    rule = combination(loss)
    sums: list[Tensor] = []
    kind = source.device.type
    size = max(1, min(BATCH[kind], BATCH_BYTES[kind] // source.batch_bytes(1)))
    for begin in range(world.rank * size, len(source), world.size * size):
        interrupts.check_signals()
        batch = source.read_range(begin, begin + size)
        with torch.set_grad_enabled(gradients), random_context(begin // size), numerics.autocast():
            outputs = numerics.to_param_dtype(module(batch.inputs.clone()))  # a module may write to its inputs
        with torch.set_grad_enabled(gradients):
            sums.append(batch_sums(outputs, batch.targets, loss, rule, topk, begin).detach())
    module.train(was_training)
    rank_sums = world.all_gather_object(torch.stack(sums).tolist() if sums else [], "the evaluation")
    totals = [0.0] * (2 + (len(topk) + 1 if topk else 0))
    for place in range(-(-len(source) // size)):
        classes, sample, label, *found = rank_sums[place % world.size][place // world.size]
        if classes:
            raise UsageError(unknown_label(int(sample), int(label), int(classes)))
        totals = [total + value for total, value in zip(totals, found, strict=True)]
    if not (rule.summed or totals[1]):
        raise UsageError(f"test: the loss counts none of the {len(source)} targets, so that it has no mean")
    accuracies = tuple(hits / totals[-1] if totals[-1] else 0.0 for hits in totals[2:-1])
    return Evaluation(totals[0] if rule.summed else totals[0] / totals[1], accuracies)


def batch_sums(
    outputs: Tensor, targets: Tensor, loss: Loss, rule: Combination, topk: tuple[int, ...], begin: int
) -> Tensor:
    """Return the sums of one batch as one float64 vector on its device.

    The vector is (classes, sample, label) of the first unknown label or zeros, the loss, its divisor, and with `topk`
    the correct predictions for each k and the number of counted targets.

    Args:
        begin: Number of the batch's first sample.
    """
    fault = torch.zeros(3, dtype=torch.float64, device=outputs.device)
    unknown = rule.unknown(outputs, targets)
    if unknown is not None:  # checked after the last batch: reading it here would synchronize a GPU
        place = unknown.flatten().int().argmax()
        label = targets.flatten().gather(0, place.reshape(1))[0].long()
        first = torch.full_like(place, outputs.shape[rule.class_axis]), begin + place // unknown[0].numel(), label
        fault = torch.stack(first) * unknown.any()
        targets = targets.masked_fill(unknown, 0)
    weight = rule.weight_of(targets)
    value = loss(outputs, targets).double()
    if not rule.summed:
        value = torch.where(weight > 0, value * weight, 0)  # the mean of no targets is NaN
    sums = [fault.double(), value.reshape(1), weight.reshape(1)]
    if topk:
        counts = count_correct(outputs.unsqueeze(0), targets.unsqueeze(0), topk, rule.ignored)[0]
        ignored = counts[len(topk) :].sum().reshape(1)
        sums += [counts[: len(topk)], targets.numel() - ignored]
    return torch.cat(sums)
