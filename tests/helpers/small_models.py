"""Modules and data small enough to be trained many times over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.data.types import DataSet, Split


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 7), nn.ReLU(), nn.Linear(7, 4))


class Convolutions(nn.Module):
    """Two convolutions with norms made by `norm`, and a linear layer with a norm of its own."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(2, 4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(6) if norm == "batch" else nn.GroupNorm(3, 6)
        self.linear1 = nn.Linear(6 * 3 * 3, 5)
        self.norm3 = nn.BatchNorm1d(5, affine=False) if norm == "batch" else nn.LayerNorm(5)
        self.linear2 = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.linear2(torch.tanh(self.norm3(self.linear1(x.flatten(1)))))


class Odd(nn.Module):
    """Tied and frozen weights, a parameter that nothing uses, a scalar one and buffers that the forward pass reads."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * 6 * 5, 6)
        self.second = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.second.weight
        self.frozen = nn.Linear(6, 6)
        for value in self.frozen.parameters():
            value.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3, 2))
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.last = nn.Linear(6, 4)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 6))
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1))) * self.scale
        x = torch.tanh(self.again(torch.tanh(self.second(x))))
        return self.last(self.gain * self.frozen(x))


class Wide(nn.Module):
    """A million parameters, most of them without effect: what is slow to write, not to train."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Parameter(torch.zeros(1_000_000))
        self.linear = nn.Linear(3 * 6 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) + self.rest[0]


class Words(nn.Module):
    """Integer inputs: the mean of embedded words, one of which pads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5, padding_idx=0)
        self.norm = nn.LayerNorm(5)
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.embedding(x).mean(dim=1)))


def make(name: str, seed: int = 0) -> nn.Module:
    """A module of this file, its parameters away from their special values so that every term of a step shows."""
    kinds = {
        "perceptron": perceptron,
        "batchnorm": lambda: Convolutions("batch"),
        "groupnorm": lambda: Convolutions("group"),
        "odd": Odd,
        "words": Words,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kinds[name]()
        with torch.no_grad():
            for value in module.parameters():
                value.add_(torch.randn(value.shape), alpha=0.1)
    return module.double()


def images(train: int = 60, test: int = 17, seed: int = 0) -> DataSet:
    """uint8 images of 3 x 6 x 5 with 4 classes."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, 3, 6, 5), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, 4, (count,), generator=generator))

    return DataSet("images", split(train), split(test), classes=4, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25))


def sentences(train: int = 60, test: int = 17) -> DataSet:
    """Sentences of 6 out of 11 words, with 4 classes; inputs reach the model as they are."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        words = torch.randint(0, 11, (count, 6), generator=generator)
        return Split(words, torch.randint(0, 4, (count,), generator=generator))

    return DataSet("sentences", split(train), split(test), classes=4, mean=None, std=None)
