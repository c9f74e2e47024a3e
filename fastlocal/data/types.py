"""What every data set is once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One half of a data set.

    inputs: uint8 images [n, channels, height, width], or any tensor of n rows that the model takes as it is
    targets: int64 labels [n], or any tensor of n rows that the loss takes
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]


@dataclass(frozen=True)
class DataSet:
    """Training and test samples, decoded.

    classes: number of labels, or None where the targets are not labels
    mean, std: one value per channel in units of 1, so that a model sees (x / 255 - mean) / std; None where the inputs
        reach the model as they are
    """

    name: str
    train: Split
    test: Split
    classes: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def is_rgb(self) -> bool:
        """Whether the inputs are three-channel uint8 images."""
        return self.mean is not None and self.train.inputs.shape[1] == 3
