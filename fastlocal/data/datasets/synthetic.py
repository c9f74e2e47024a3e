"""Coloured blobs in noise, drawn from the seed: a data set for trials without files."""

from __future__ import annotations

import math

import torch

from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.types import DataSet, Split

CLASSES = 10
N_TRAIN = 2000
N_TEST = 500
SIDE = 32

_RING_RADIUS = 8.0  # pixels from the image's centre to a class's blob
_BLOB_WIDTH = 4.0  # standard deviation of a blob, in pixels
_JITTER = 1.5  # standard deviation of a blob's place, in pixels
_NOISE = 40.0  # standard deviation of the background, in grey levels


def _draw(n: int, generator: torch.Generator) -> Split:
    """Draw n images of blobs, with equal class counts, in random order.

    The blob of class k lies at angle 2 pi k / 10 on a ring, and its colour depends on k: channel j has the amplitude
    100 cos(2 pi (k / 10 + j / 3)). The background is Gaussian around grey 128.
    """
    targets = (torch.arange(n) % CLASSES)[torch.randperm(n, generator=generator)]
    angle = targets * (2 * math.pi / CLASSES)
    centre = torch.stack([angle.sin(), angle.cos()], dim=1) * _RING_RADIUS + (SIDE - 1) / 2
    centre = centre + _JITTER * torch.randn(n, 2, generator=generator)
    pixel = torch.arange(SIDE, dtype=torch.float32)
    rows, columns = (torch.exp(-((pixel - centre[:, axis, None]) ** 2) / (2 * _BLOB_WIDTH**2)) for axis in (0, 1))
    blob = rows[:, None, :, None] * columns[:, None, None, :]
    colour = 100 * torch.cos(angle[:, None] + torch.arange(3) * (2 * math.pi / 3))
    noise = _NOISE * torch.randn(n, 3, SIDE, SIDE, generator=generator)
    images = 128 + colour[:, :, None, None] * blob + noise
    return Split(images.round().clamp(0, 255).to(torch.uint8), targets)


def read(request: DatasetSpec) -> DataSet:
    """Draw RGB images [n, 3, 32, 32] in 10 classes: 2,000 for training, 500 for testing, the same for the same seed."""
    generator = torch.Generator().manual_seed(request.seed)
    train, test = _draw(N_TRAIN, generator), _draw(N_TEST, generator)
    return DataSet(request.name, train, test, classes=CLASSES, mean=None, std=None)
