"""Losses, how those of batches make that of a whole data set, and counts of right predictions."""

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
    """Mean cross-entropy of one batch. outputs: [batch, classes]        targets: int64 [batch]"""
    return F.cross_entropy(outputs, targets)


@torch.no_grad()
def count_correct(outputs: Tensor, targets: Tensor, topk: Sequence[int], ignored: int | None = None) -> Tensor:
    """How many targets are among the k largest outputs, for each k.

    outputs: [..., classes]        targets: int64 [...]        ignored: a target that does not count, or None
    Returns float64 [len(topk)], and one more number where a target may be ignored: how many were. Where there are fewer
    classes than k, every target counts.
    """
    most = min(max(topk), outputs.shape[-1])
    hits = outputs.topk(most, dim=-1).indices == targets.unsqueeze(-1)
    if ignored is None:
        return torch.stack([hits[..., :k].sum(dtype=torch.float64) for k in topk])
    left_out = targets == ignored
    hits = hits & ~left_out.unsqueeze(-1)
    return torch.stack([part.sum(dtype=torch.float64) for part in (*(hits[..., :k] for k in topk), left_out)])


@dataclass(frozen=True)
class Combination:
    """How a loss's values for batches make its value for all samples in one call.

    By their mean, weighted with the samples of each batch: torch's own mean losses give every sample the same weight,
    but for those of labels.

    summed: by their sum instead        labels: whether whole numbers as targets are labels, as of cross-entropy
    ignored: the label of targets that do not count, or None        weight: [classes], of labels; None: ones
    """

    summed: bool = False
    labels: bool = False
    ignored: int | None = None
    weight: Tensor | None = None

    def takes_labels(self, targets: Tensor) -> bool:
        """Whether these targets are labels, and not probabilities of classes say."""
        return self.labels and not targets.is_floating_point()

    def weight_of(self, targets: Tensor) -> Tensor:
        """What a batch counts for, float64 []."""
        if not self.takes_labels(targets):
            return torch.full((), len(targets), dtype=torch.float64, device=targets.device)
        counted = self._counted(targets)
        if self.weight is None:
            return counted.sum(dtype=torch.float64)
        return (self.weight.double()[torch.where(counted, targets, 0).long()] * counted).sum()

    def unknown(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Where targets are neither labels of the outputs [batch, classes, ...] nor ignored; None: they are none."""
        if not self.takes_labels(targets) or outputs.dim() < 2:
            return None
        return ((targets < 0) | (targets >= outputs.shape[1])) & self._counted(targets)

    def _counted(self, labels: Tensor) -> Tensor:
        assert self.ignored is not None, "every loss of labels may ignore one"
        return labels != self.ignored


OF_LABELS = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}
"""Losses of labels, which may have weights and be ignored."""


def combination(loss: Loss) -> Combination:
    """That of torch's own losses, its functions with settings bound by keyword too; of others the mean over samples."""
    if loss is cross_entropy:
        return Combination(labels=True, ignored=-100)
    given: dict[str, Any] = {}
    function: Any = loss
    while isinstance(function, functools.partial) and not function.args:
        function, given = function.func, {**function.keywords, **given}
    if isinstance(function, nn.Module) and not given:
        return _of_module(function)
    if getattr(function, "__module__", None) != F.__name__:
        return Combination()
    if given.get("size_average") is not None or given.get("reduce") is not None:
        reduction = _reduction.legacy_get_string(given.get("size_average"), given.get("reduce"), emit_warning=False)
        given["reduction"] = reduction
    summed = given.get("reduction", "mean") == "sum"
    if function in OF_LABELS.values():
        return Combination(summed, True, given.get("ignore_index", -100), given.get("weight"))
    return Combination(summed)


def _of_module(loss: nn.Module) -> Combination:
    owner = next(kind for kind in type(loss).__mro__ if "forward" in vars(kind))
    if owner.__module__ != nn.modules.loss.__name__ or "forward" in vars(loss) or loss._forward_hooks:
        return Combination()
    summed = getattr(loss, "reduction", "mean") == "sum"
    if owner in OF_LABELS:
        ignored: Any = loss.ignore_index
        weight: Any = loss.weight
        return Combination(summed, True, ignored, weight)
    return Combination(summed)


def placed(loss: Loss, device: torch.device, dtype: torch.dtype, model: nn.Module | None = None) -> Loss:
    """A loss whose tensors are on the device, floating ones in `dtype`: a copy, where it holds any.

    Tensors of a module are its parameters and buffers; of a partial function those that are bound, or a module's.
    What belongs to the model stays what it is, as it stands for the client's.
    """
    kept = [] if model is None else [*model.modules(), *model.parameters(), *model.buffers()]
    return _placed(loss, device, dtype, {id(each): each for each in kept})


def _placed(value: Any, device: torch.device, dtype: torch.dtype, kept: dict[int, Any]) -> Any:
    if id(value) in kept:
        return value
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, functools.partial):
        args = [_placed(each, device, dtype, kept) for each in value.args]
        keywords = {name: _placed(each, device, dtype, kept) for name, each in value.keywords.items()}
        return functools.partial(_placed(value.func, device, dtype, kept), *args, **keywords)
    if not isinstance(value, nn.Module) or all(id(each) in kept for each in (*value.parameters(), *value.buffers())):
        return value
    try:
        copied = copy.deepcopy(value, dict(kept))
    except Exception as error:  # whatever a user's module raises
        reason = one_line(error)
        raise UsageError(f"loss {type(value).__name__}: cannot be copied by copy.deepcopy ({reason})") from error
    for part in copied.modules():
        for tensors in (part._parameters, part._buffers) if id(part) not in kept else ():
            for each in tensors.values():
                if each is not None and id(each) not in kept:
                    each.data = each.data.to(device, dtype if each.is_floating_point() else None)
    return copied
