"""Two small models for small images, `mlp` and `cnn`, with torch's initialisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.common.errors import UsageError


def small(name: str, in_channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Make `mlp` or `cnn`; raise UsageError if the images are too small for the two poolings of `cnn`."""
    height, width = image_size
    if name == "mlp":
        return MLP(in_channels * height * width, classes)
    if min(image_size) < 4:
        raise UsageError(
            f"--model cnn needs images of at least 4 x 4, those of --dataset are {height} x {width}; mlp would do"
        )
    return CNN(in_channels, classes, (height // 4) * (width // 4))


class MLP(nn.Module):
    """One hidden layer of 128 units: [n, ...] with `features` values per sample -> [n, classes]."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, 128)
        self.linear = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.hidden(x.flatten(1))))


class CNN(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max pooling: [n, in_channels, h, w] -> [n, classes].

    The poolings leave `positions` = (h // 4) * (w // 4) pixels.
    """

    def __init__(self, in_channels: int, classes: int, positions: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.linear = nn.Linear(32 * positions, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        return self.linear(out.flatten(1))
