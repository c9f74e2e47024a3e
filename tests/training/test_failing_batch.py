"""A sample that the model or the loss does not take, late in the data: step, client and sample are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fastlocal

SAMPLES, LATE = 96, 77


class Rows(Dataset[Any]):
    """Samples that are read as they are asked for, one of them odd."""

    def __init__(self, token: int, label: int) -> None:
        self.tokens, self.labels = torch.arange(SAMPLES * 3).reshape(-1, 3) % 11, torch.arange(SAMPLES) % 4
        self.tokens[LATE, 1], self.labels[LATE] = token, label

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.tokens[index], self.labels[index]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(11, 5), nn.Linear(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.table(tokens).mean(dim=1))


def failure(data: Dataset[Any], executor: str, tmp_path: Path, model: nn.Module | None = None) -> str:
    """The one line that a run ends with."""
    test = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError) as caught:
        fastlocal.train(
            model or Words(), data, test, clients=4, local_steps=6, batch_size=4, rounds=1, loss=nn.CrossEntropyLoss(),
            executor=executor, directory=tmp_path / "run", nw=1, progress=False,
        )  # fmt: skip
    text = str(caught.value)
    assert "\n" not in text and f"sample {LATE}" in text and "step " in text and "client " in text, text
    return text


@pytest.mark.parametrize(
    ("token", "label", "executor"),
    [
        *((3, 12, "looped"), (-1, 1, "looped")),
        *((3, -3, "stacked"), (11, 0, "stacked")),
        *((3, 12, "threaded"), (11, 0, "threaded")),
    ],
)
def test_the_sample_is_named(token: int, label: int, executor: str, tmp_path: Path) -> None:
    """At its place in the order, which is torch.randperm of the seed; a token and a label by each executor."""
    place = (torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)) == LATE).nonzero().item()
    step, client = int(place) // 16, int(place) % 16 // 4
    text = failure(Rows(token, label), executor, tmp_path)
    assert f"step {step}, client {client}" in text
    assert ("the loss fails" if label in (12, -3) else "the model fails") in text
