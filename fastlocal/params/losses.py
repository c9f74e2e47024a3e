"""Losses, their combination over the batches of a data set, and counts of correct predictions."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import _reduction

from ..common.errors import UsageError, one_line

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of outputs [batch, classes] and int64 targets [batch]."""
    return F.cross_entropy(outputs, targets)


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all places: outputs [batch, length, vocabulary], int64 [batch, length]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@torch.no_grad()
def count_correct(outputs: Tensor, targets: Tensor, topk: Sequence[int], ignored: int | None = None) -> Tensor:
    """Count the targets of each client among the k largest outputs, for each k.

    Args:
        outputs: [clients, ..., classes].
        targets: int64 [clients, ...].
        topk: Values of k; with fewer classes than k every target counts.
        ignored: Label of targets that do not count, or None.

    Returns:
        float64 [clients, len(topk)]; unless `ignored` is None, one more column: the counts of ignored targets.
    """
    largest_k = min(max(topk), outputs.shape[-1])
    hits = outputs.topk(largest_k, dim=-1).indices == targets.unsqueeze(-1)
    left_out = None if ignored is None else targets == ignored
    if left_out is not None:
        hits = hits & ~left_out.unsqueeze(-1)
    parts = [*(hits[..., :k] for k in topk), *([] if left_out is None else [left_out])]
    return torch.stack([part.flatten(1).sum(dim=1, dtype=torch.float64) for part in parts], dim=-1)


@dataclass(frozen=True)
class Combination:
    """How the loss of a data set follows from the losses of its batches.

    It is their mean, weighted by the samples of each batch; for labels, by the weight of each label.

    Attributes:
        summed: Add the batch losses instead.
        labels: Whether integer targets are class labels, as of cross-entropy.
        ignored: Label of targets that do not count, or None.
        class_axis: Axis of the classes in the outputs of a batch.
        weight: [classes], weight of each label; None: ones.
    """

    summed: bool = False
    labels: bool = False
    ignored: int | None = None
    weight: Tensor | None = None
    class_axis: int = 1

    def takes_labels(self, targets: Tensor) -> bool:
        """Return True if these targets are labels rather than class probabilities."""
        return self.labels and not targets.is_floating_point()

    def weight_of(self, targets: Tensor) -> Tensor:
        """Return the weight of a batch, float64 []."""
        if not self.takes_labels(targets):
            return torch.full((), len(targets), dtype=torch.float64, device=targets.device)
        counted = self._not_ignored(targets)
        if self.weight is None:
            return counted.sum(dtype=torch.float64)
        return (self.weight.double()[torch.where(counted, targets, 0).long()] * counted).sum()

    def unknown(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Mask targets that are neither a class of the outputs of a batch nor ignored; None without labels."""
        if not self.takes_labels(targets) or outputs.dim() < 2:
            return None
        return ((targets < 0) | (targets >= outputs.shape[self.class_axis])) & self._not_ignored(targets)

    def _not_ignored(self, labels: Tensor) -> Tensor:
        assert self.ignored is not None, "every loss of labels may ignore one"
        return labels != self.ignored


LABEL_LOSSES = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}
"""Losses whose targets are labels, with optional weights and an ignored label."""


def combination(loss: Loss) -> Combination:
    """Return the combination of one of torch's losses, also with bound keywords; for others the mean over samples."""
    if loss is cross_entropy:
        return Combination(labels=True, ignored=-100)
    if loss is token_cross_entropy:
        return Combination(labels=True, ignored=-100, class_axis=-1)
    keywords: dict[str, Any] = {}
    function: Any = loss
    while isinstance(function, functools.partial) and not function.args:
        function, keywords = function.func, {**function.keywords, **keywords}
    if isinstance(function, nn.Module) and not keywords:
        return _of_module(function)
    if getattr(function, "__module__", None) != F.__name__:
        return Combination()
    if keywords.get("size_average") is not None or keywords.get("reduce") is not None:
        reduction = _reduction.legacy_get_string(
            keywords.get("size_average"), keywords.get("reduce"), emit_warning=False
        )
        keywords["reduction"] = reduction
    summed = keywords.get("reduction", "mean") == "sum"
    if function in LABEL_LOSSES.values():
        return Combination(summed, True, keywords.get("ignore_index", -100), keywords.get("weight"))
    return Combination(summed)


def _of_module(loss: nn.Module) -> Combination:
    owner = next(kind for kind in type(loss).__mro__ if "forward" in vars(kind))
    if owner.__module__ != nn.modules.loss.__name__ or "forward" in vars(loss) or loss._forward_hooks:
        return Combination()
    summed = getattr(loss, "reduction", "mean") == "sum"
    if owner in LABEL_LOSSES:
        ignored: Any = loss.ignore_index
        weight: Any = loss.weight
        return Combination(summed, True, ignored, weight)
    return Combination(summed)


def move_loss(loss: Loss, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None) -> Loss:
    """Move a loss's tensors to the device and floating ones to `dtype`, in a copy; without tensors, return the loss.

    The tensors are the parameters and buffers of a module, or those bound to a partial function. Parts of `model` stay
    as they are: each client replaces them by its own.
    """
    shared = [] if model is None else [*model.modules(), *model.parameters(), *model.buffers()]
    return _move(loss, device, dtype, {id(each): each for each in shared})


def _move(value: Any, device: torch.device, dtype: torch.dtype, shared: dict[int, Any]) -> Any:
    if id(value) in shared:
        return value
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, functools.partial):
        args = [_move(each, device, dtype, shared) for each in value.args]
        keywords = {name: _move(each, device, dtype, shared) for name, each in value.keywords.items()}
        return functools.partial(_move(value.func, device, dtype, shared), *args, **keywords)
    if not isinstance(value, nn.Module) or all(id(each) in shared for each in (*value.parameters(), *value.buffers())):
        return value
    try:
        duplicate = copy.deepcopy(value, dict(shared))
    except Exception as error:  # whatever a user's module raises
        reason = one_line(error)
        raise UsageError(f"loss {type(value).__name__}: cannot be copied by copy.deepcopy ({reason})") from error
    for part in duplicate.modules():
        for tensors in (part._parameters, part._buffers) if id(part) not in shared else ():
            for each in tensors.values():
                if each is not None and id(each) not in shared:
                    each.data = each.data.to(device, dtype if each.is_floating_point() else None)
    return duplicate
