"""Checks of the labels of a data set."""

from __future__ import annotations

import numpy as np

from fastlocal.common.errors import UsageError

from .types import DataSet


def refuse_empty_classes(data: DataSet, *, data_pth: str | None, train_pth: str | None) -> None:
    """Raise UsageError if a class has no training sample.

    Args:
        data: The data set.
        data_pth: --data-pth, for the message.
        train_pth: --train-pth, for the message.
    """
    if data.classes is None or data.train.targets is None or data.tokens:
        return
    present = data.train.targets.unique().numpy()
    if len(present) == data.classes:
        return
    place = int(np.argmax(np.append(present, -1) != np.arange(len(present) + 1)))
    name = "" if data.class_names is None else f" ({data.class_names[place]})"
    others = f" and {data.classes - len(present) - 1:,} more" if data.classes - len(present) > 1 else ""
    flag = f"--train-pth {train_pth}" if train_pth else f"--data-pth {data_pth}" if data_pth else ""
    raise UsageError(
        f"{flag or f'--dataset {data.name}'}: class {place}{name}{others} of {data.classes:,} has no training sample; "
        "give every class one, or number labels from 0 without gaps"
    )


def unknown_label(sample: int, label: int, classes: int, split: str = "test") -> str:
    """Return the message for a sample whose label has no output."""
    return f"{split}: sample {sample} has label {label}; the model has {classes} outputs, for labels 0 to {classes - 1}"
