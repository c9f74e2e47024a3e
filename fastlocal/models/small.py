"""Small models for small images, with torch's initialisation: two of ours, and four of published results."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.common.errors import UsageError


def small(name: str, in_channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Make a model by its name; raise UsageError if the images are too small for its convolutions and poolings."""
    height, width = image_size
    features = in_channels * height * width
    if name == "mlp":
        return MLP(features, classes)
    if name == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    if name == "2nn":
        return _two_nn(features, classes)
    least = {"cnn": 4, "lenet": 16, "simple_cnn": 6}[name]
    if min(image_size) < least:
        raise UsageError(
            f"--model {name} needs images of at least {least} x {least}, those of --dataset are {height} x {width}; "
            "mlp would do"
        )
    if name == "cnn":
        return CNN(in_channels, classes, (height // 4) * (width // 4))
    make = _lenet if name == "lenet" else _simple_cnn
    return make(in_channels, classes, height, width)


def _two_nn(features: int, classes: int) -> nn.Module:
    """Make the 2NN of McMahan et al. 2017: two hidden layers of 200 units, 199,210 parameters on MNIST."""
    hidden = [nn.Linear(features, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(200, classes))


def _lenet(in_channels: int, classes: int, height: int, width: int) -> nn.Module:
    """Make the CNN of NIID-Bench (Li et al. 2022), LeNet-5's sizes: 44,426 parameters on 28x28 grey images."""
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    convolutions = [nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    linear = [nn.Linear(16 * rows * columns, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *linear)


def _simple_cnn(in_channels: int, classes: int, height: int, width: int) -> nn.Module:
    """Make the CNN of pfl-research's CIFAR-10 benchmark, with dropout: 1,626,442 parameters on 32x32 RGB images."""
    positions = ((height - 4) // 2) * ((width - 4) // 2)
    convolutions = [nn.Conv2d(in_channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    linear = [nn.Linear(64 * positions, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)]
    return nn.Sequential(*convolutions, nn.Dropout(0.25), nn.Flatten(), *linear)


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
