"""Convert tensors, arrays and Datasets from the Python API to splits."""

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
from .describe import describe
from .types import IMAGE_DIMS, BadSample, DataSet, MapSplit, Split

CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
CLASS_FUNCTIONS = (cross_entropy, F.cross_entropy, F.nll_loss, F.multi_margin_loss)
"""Losses that take integer targets as class indices."""
PAIR = "give a pair (inputs, targets), or a map-style Dataset"


def make_split(name: str, value: Any, loss: Loss) -> Split | MapSplit:
    """Make a split of a pair (inputs, targets) or of a map-style Dataset.

    Args:
        name: Name of the argument, for messages.
        value: The pair or the Dataset.
        loss: The loss, which decides whether targets are classes.

    Raises:
        UsageError: The value is neither, its lengths differ, or it holds NaN or infinity.
    """
    labels = _takes_classes(loss)
    pairs = isinstance(value, list) and len(value) > 2 and all(isinstance(s, tuple) and len(s) == 2 for s in value)
    is_data = not pairs and isinstance(value, tuple | list | str | bytes | dict | Tensor | np.ndarray)
    if not is_data and hasattr(value, "__getitem__") and hasattr(value, "__len__"):
        if len(value) == 0:
            raise UsageError(f"{name}: is empty")
        try:
            return MapSplit.from_dataset(value, labels=labels)
        except BadSample as bad:
            raise UsageError(f"{name}: {bad}") from None
    if not isinstance(value, tuple | list) or len(value) != 2:
        own = ", such as its .dataset" if hasattr(value, "dataset") else ""
        raise UsageError(f"{name}: is {describe(value)}; {PAIR}{own}")
    inputs, targets = _tensor(f"{name} inputs", value[0]), _tensor(f"{name} targets", value[1])
    if len(inputs) != len(targets):
        raise UsageError(f"{name}: {len(inputs)} inputs but {len(targets)} targets")
    if len(inputs) == 0:
        raise UsageError(f"{name}: is empty")
    if inputs.dtype == torch.uint8:  # the kernels need contiguous images
        inputs = inputs.contiguous()
    is_label = targets.dtype == torch.uint8 and targets.dim() <= IMAGE_DIMS
    if is_label or (labels and targets.dtype in (torch.uint8, torch.bool)):
        targets = targets.long()
    return Split(inputs, targets)


def _takes_classes(loss: Loss) -> bool:
    """Return True if a loss takes integer targets as class indices."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return isinstance(loss, CLASS_LOSSES) or loss in CLASS_FUNCTIONS


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.isnative is False:
        value = value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, np.ndarray) and any(stride < 0 for stride in value.strides):
        value = value.copy()
    try:
        tensor = torch.as_tensor(value).detach()
    except Exception as error:  # a user's object may raise anything
        raise UsageError(
            f"{name}: is {describe(value)}, not a tensor or an array of numbers{_remedy(value)}"
        ) from error
    if tensor.dim() == 0:
        raise UsageError(f"{name}: is a single number; the first axis counts samples")
    if tensor.is_floating_point() and not _is_finite(tensor):
        raise UsageError(f"{name}: holds NaN or infinity")
    if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64):
        tensor = tensor.long()
    return tensor


def _is_finite(tensor: Tensor) -> bool:
    """Return True without NaN and infinity; the extremes need no copy, for which isfinite takes twice the memory."""
    return tensor.numel() == 0 or all(math.isfinite(value) for value in torch.aminmax(tensor))


def _remedy(value: Any) -> str:
    """Return advice for names, or for a list of tensors."""
    parts = (
        value.ravel().tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list | tuple) else []
    )
    if any(isinstance(part, str | bytes) for part in parts):
        return "; numpy.unique(names, return_inverse=True)[1] numbers classes"
    return "; torch.stack makes one tensor of them" if any(isinstance(part, Tensor) for part in parts) else ""


def check_normalisation(data: DataSet) -> None:
    """Raise UsageError if mean and std do not fit the inputs."""
    if data.mean is None and data.std is None:
        return
    train, shape = data.train, data.train.sample_shape
    uint8 = train.first[0].dtype == np.uint8 if isinstance(train, MapSplit) else False
    uint8 = train.inputs.dtype == torch.uint8 if isinstance(train, Split) else uint8
    if data.mean is None or data.std is None or not uint8 or len(shape) != 3:
        raise UsageError("mean, std: give both, for uint8 images [n, channels, height, width]")
    if len(data.mean) != shape[0] or len(data.std) != shape[0]:
        raise UsageError(f"mean, std: give one value for each of the {shape[0]} channels")
    if not all(map(math.isfinite, data.mean + data.std)) or min(data.std) <= 0:
        raise UsageError("mean, std: must be finite, and std above 0")
