"""What Python gives as a data set: tensors, arrays and Datasets, brought to what a run reads."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UsageError
from ..params.losses import Loss, cross_entropy
from .in_words import in_words
from .types import IMAGE_DIMS, BadSample, DataSet, MapSplit, Split

CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
CLASS_FUNCTIONS = (cross_entropy, F.cross_entropy, F.nll_loss, F.multi_margin_loss)
"""What takes integer targets as numbers of classes."""
PAIR = "give a pair (inputs, targets), or a map-style Dataset"


def split_of(name: str, given: Any, loss: Loss) -> Split | MapSplit:
    """Tensors of both halves of a pair, with as many rows, and finite where they are floating; or a Dataset.

    Args:
        name: Of the argument, for messages.
        given: The pair or the Dataset.
        loss: What the targets are for.

    Raises:
        UsageError: It is neither.
    """
    labels = _counts_classes(loss)
    values = isinstance(given, tuple | list | str | bytes | dict | Tensor | np.ndarray)
    if not values and hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        if len(given) == 0:
            raise UsageError(f"{name}: is empty")
        try:
            return MapSplit.of(given, labels=labels)
        except BadSample as bad:
            raise UsageError(f"{name}: {bad}") from None
    if not isinstance(given, tuple | list) or len(given) != 2:
        own = ", such as its .dataset" if hasattr(given, "dataset") else ""
        raise UsageError(f"{name}: is {in_words(given)}; {PAIR}{own}")
    inputs, targets = _tensor(f"{name} inputs", given[0]), _tensor(f"{name} targets", given[1])
    if len(inputs) != len(targets):
        raise UsageError(f"{name}: {len(inputs)} inputs but {len(targets)} targets")
    if len(inputs) == 0:
        raise UsageError(f"{name}: is empty")
    if inputs.dtype == torch.uint8:  # the kernels read images as [n, channels, height, width] lies in memory
        inputs = inputs.contiguous()
    is_label = targets.dtype == torch.uint8 and targets.dim() <= IMAGE_DIMS
    if is_label or (labels and targets.dtype in (torch.uint8, torch.bool)):
        targets = targets.long()
    return Split(inputs, targets)


def _counts_classes(loss: Loss) -> bool:
    """Whether a loss takes integer targets as numbers of classes."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return isinstance(loss, CLASS_LOSSES) or loss in CLASS_FUNCTIONS


def _tensor(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach()
    except Exception as error:  # whatever a user's object raises that is asked for its values
        raise UsageError(
            f"{name}: is {in_words(value)}, not a tensor or an array of numbers{_remedy(value)}"
        ) from error
    if tensor.dim() == 0:
        raise UsageError(f"{name}: is a single number; the first axis counts samples")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise UsageError(f"{name}: holds NaN or infinity")
    if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.long()
    return tensor


def _remedy(value: Any) -> str:
    """What would do in the place of names, or of a list of tensors."""
    parts = (
        value.ravel().tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list | tuple) else []
    )
    if any(isinstance(part, str | bytes) for part in parts):
        return "; numpy.unique(names, return_inverse=True)[1] numbers classes"
    return "; torch.stack makes one tensor of them" if any(isinstance(part, Tensor) for part in parts) else ""


def check_normalisation(data: DataSet) -> None:
    """Raise UsageError where mean and std do not fit the inputs."""
    if data.mean is None and data.std is None:
        return
    train, shape = data.train, data.train.sample_shape
    levels = train.first[0].dtype == np.uint8 if isinstance(train, MapSplit) else False
    levels = train.inputs.dtype == torch.uint8 if isinstance(train, Split) else levels
    if data.mean is None or data.std is None or not levels or len(shape) != 3:
        raise UsageError("mean, std: give both, for uint8 images [n, channels, height, width]")
    if len(data.mean) != shape[0] or len(data.std) != shape[0]:
        raise UsageError(f"mean, std: give one value for each of the {shape[0]} channels")
    if not all(map(math.isfinite, data.mean + data.std)) or min(data.std) <= 0:
        raise UsageError("mean, std: must be finite, and std above 0")
