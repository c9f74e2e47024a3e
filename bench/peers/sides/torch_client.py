"""The steps of a client and the loss of the global model, for the sides in torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from protocol import Workload
from torch import nn


def make_optimizer(work: Workload, module: nn.Module) -> torch.optim.SGD:
    """Return the SGD of a client."""
    return torch.optim.SGD(module.parameters(), work.lr, momentum=work.momentum, weight_decay=work.weight_decay)


def train_client(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any, targets: Any) -> None:
    """Take a step on each batch of inputs [local_steps, batch, ...] and targets [local_steps, batch], as arrays."""
    for x, y in zip(torch.from_numpy(inputs), torch.from_numpy(targets), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


@torch.no_grad()
def check_loss(work: Workload, module: nn.Module) -> float:
    """Return the mean cross-entropy on the check samples."""
    inputs, targets = work.check_samples()
    return float(F.cross_entropy(module(torch.from_numpy(inputs)), torch.from_numpy(targets)))
