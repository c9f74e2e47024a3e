"""The judge of executors beside a loop over copies of the module, which cannot mean anything else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.plain_loop import Recipe, plain_train
from tests.strangers import test_state as state
from tests.strangers.strange_data import Net, seeded, table

KINDS: dict[str, Any] = {**state.BUFFERS, "plain": Net, "an attribute": state.Calls, "a tensor": state.Remembers}
RECIPE = Recipe(3, 3, 4, 5, 0.2, momentum=0.9, nesterov=True, weight_decay=0.01, seed=7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_is_a_loop_over_copies(kind: str) -> None:
    """Copies of the module, each with its optimizer, and a mean of the parameters after each round."""
    inputs, targets = table(101)
    copies = [copy.deepcopy(seeded(KINDS[kind])()) for _ in range(3)]
    optimizers = [
        torch.optim.SGD(one.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01) for one in copies
    ]
    for step in range(12):
        order = torch.randperm(101, generator=torch.Generator().manual_seed(7 + step // 6))
        for client, (one, optimizer) in enumerate(zip(copies, optimizers, strict=True)):
            ids = order[((step % 6) * 3 + client) * 5 :][:5]
            optimizer.zero_grad()
            F.cross_entropy(one(inputs[ids]), targets[ids]).backward()
            optimizer.step()
        if step % 4 == 3:
            average(copies)
    judged = plain_train(seeded(KINDS[kind])(), (inputs, targets), F.cross_entropy, RECIPE)
    for name, value in copies[0].named_parameters():
        torch.testing.assert_close(judged.parameters[name], value.detach(), rtol=1e-12, atol=1e-12)
    for name, first in copies[0].named_buffers():
        values = torch.stack([dict(one.named_buffers())[name] for one in copies])
        wanted = values.mean(dim=0) if first.is_floating_point() else first
        torch.testing.assert_close(judged.buffers[name], wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def average(copies: list[nn.Module]) -> None:
    for values in zip(*(one.parameters() for one in copies), strict=True):
        mean = torch.stack(values).mean(dim=0)
        for value in values:
            value.copy_(mean)
