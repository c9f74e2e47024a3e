"""FedProx's generated clients: drawn from the seed, a linear model each, further apart with a larger spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastlocal.data.datasets import load
from fastlocal.data.types import DataSet


def draw(kind: str, seed: int = 0) -> DataSet:
    return load(f"fedprox_synthetic_{kind}", data_pth=None, seed=seed)


def test_sizes_and_owners() -> None:
    data, other = draw("1"), draw("1", seed=1)
    assert data.natural is not None and data.natural.clients == 30 and data.classes == 10
    assert data.train.inputs.shape[1:] == (1, 1, 60) and data.train.inputs.dtype == torch.float32
    sizes = data.natural.sizes
    assert sizes.min() >= 45 and sizes.max() > 3 * np.median(sizes), "50 and a lognormal, less a tenth for tests"
    assert len(data.train) / 11 < len(data.test) < len(data.train) / 8
    assert sorted(np.concatenate([data.natural.samples_of(client) for client in range(30)])) == list(range(sizes.sum()))
    assert torch.equal(data.train.inputs, draw("1").train.inputs)
    assert len(other.train) != len(data.train)


@pytest.mark.parametrize("kind", ["iid", "0", "1"])
def test_a_clients_labels_follow_from_a_linear_model(kind: str) -> None:
    """Which all clients share in iid: a model of the others predicts a client there, and not where a = b = 1."""
    data = draw(kind)
    assert data.natural is not None
    largest = int(data.natural.sizes.argmax())
    own = torch.from_numpy(data.natural.samples_of(largest))
    inputs, labels = data.train.inputs.flatten(1), data.train.targets
    variance = inputs[own].var(dim=0)
    torch.testing.assert_close(variance, torch.arange(1, 61) ** -1.2, rtol=0.2, atol=0)
    model = torch.nn.Linear(60, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    half = len(own) // 2
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[own[:half]]), labels[own[:half]]).backward()
        optimizer.step()
    others = torch.ones(len(labels), dtype=torch.bool)
    others[own] = False
    at_home, abroad = (
        (model(inputs[place]).argmax(dim=1) == labels[place]).float().mean() for place in (own[half:], others)
    )
    assert at_home > 0.7
    assert (at_home - abroad < 0.1) == (kind == "iid")
