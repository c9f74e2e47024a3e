"""A small table to fit, a model of it, and fastlocal.train with what else it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastlocal


def table(samples: int = 320) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A linearly separable table: 8 columns, 2 classes."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 8, generator=generator)
    targets = (inputs @ torch.randn(8, generator=generator) > 0).long()
    cut = samples * 3 // 4
    return (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])


def perceptron() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def fit(tmp_path: Path, module: nn.Module, name: str = "run", **options: Any) -> fastlocal.Run:
    train, test = table()
    values: dict[str, Any] = {
        "train": train,
        "test": test,
        "clients": 6,
        "local_steps": 3,
        "batch_size": 8,
        "lr": 0.3,
        "rounds": 10,
        "directory": tmp_path / name,
        "progress": False,
    }
    return fastlocal.train(model=module, **(values | options))


def regression() -> dict[str, tuple[Tensor, Tensor]]:
    (inputs, _), (held, _) = table()
    return {"train": (inputs, inputs[:, :1]), "test": (held, held[:, :1])}
