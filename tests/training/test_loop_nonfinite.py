"""Losses and parameters that are no longer finite: where it is said to be, what is kept, and going on regardless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlocal.common.errors import NonFiniteLoss
from fastlocal.config.schema import RunConfig
from fastlocal.data.types import DataSet, Split
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger
from fastlocal.training.loop import Loop
from tests.helpers import small_models

ORDER = torch.randperm(60, generator=torch.Generator().manual_seed(0))
"""Epoch 0's order under seed 0: client c of 5 takes ORDER[(5 t + c) * 4:][:4] at step t, in an epoch of 3 steps."""


class Messages(Logger):
    """Keeps the lines for a person."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def poisoned(sample: int | None) -> DataSet:
    """Numbers that the model takes as they are, one sample of them NaN."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(count, 6, generator=generator) for count in (60, 9))
    if sample is not None:
        train[sample, 2] = torch.nan
    labels = torch.randint(0, 3, (69,), generator=generator)
    return DataSet("numbers", Split(train, labels[:60]), Split(test, labels[60:]), classes=3, mean=None, std=None)


def run(folder: Path, data: DataSet, *loggers: Logger, module: nn.Module | None = None, **values: Any) -> Loop:
    base: dict[str, Any] = {"batch_size": 4, "total_batch_size": 20, "start_lr": 0.01, "epochs": 2, "step1": 1}
    base |= {"resume_pth": "start.pt", "device": "cpu", "seed": 0, "log_pth": str(folder), "decay1": 99, "decay2": 99}
    config = RunConfig().with_values(**{**base, **values})
    linear = module or nn.Linear(6, 3)
    ready = build_run(config, data, lambda: linear, cross_entropy, model_flag="model")
    return train(ready, overwrite=False, make_loggers=lambda path: list(loggers))


@pytest.mark.parametrize("executor", ["stacked", "looped"])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize(("step", "client"), [(0, 0), (1, 3), (2, 4)])
def test_the_first_bad_loss_is_named_and_the_last_model_kept(
    step: int, client: int, chunk: int, executor: str, tmp_path: Path
) -> None:
    data = poisoned(int(ORDER[(5 * step + client) * 4 + 1]))
    with pytest.raises(NonFiniteLoss, match=rf"round {step + 1}, step {step}, client {client}\b.*nan"):
        run(tmp_path / "run", data, chunk=chunk, executor=executor)
    latest = tmp_path / "run" / "latest.pt"
    assert latest.exists() == (step > 0)
    if step:
        assert all(bool(value.isfinite().all()) for value in torch.load(latest, weights_only=True).values())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == step


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_the_earliest_step_of_a_round_is_named_before_the_lowest_client(chunk: int, tmp_path: Path) -> None:
    data = poisoned(int(ORDER[(5 * 0 + 3) * 4]))
    data.train.inputs[ORDER[(5 * 1 + 1) * 4]] = torch.inf
    with pytest.raises(NonFiniteLoss, match="round 1, step 0, client 3"):
        run(tmp_path / "run", data, step1=3, chunk=chunk, debug=True)
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 3 * 5


def test_going_on_says_so_once(tmp_path: Path) -> None:
    seen = Messages()
    loop = run(tmp_path / "run", poisoned(int(ORDER[0])), seen, on_nan="continue")
    assert loop.comm_round == 6 and len(loop.history) == 6
    said = [text for text in seen.texts if "--on-nan continue" in text]
    assert len(said) == 1 and "round 1, step 0, client 0" in said[0]


class Exploding(nn.Module):
    """Its loss stays finite while its gradient overflows float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(90, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight) * 3e38


def test_a_last_step_that_breaks_the_parameters_is_noticed_before_averaging(tmp_path: Path) -> None:
    data = small_models.images()
    with pytest.raises(NonFiniteLoss, match="round 1, step 0, client 0: the parameters"):
        run(tmp_path / "run", data, module=Exploding(), start_lr=1e3, aug=False)
    assert not (tmp_path / "run" / "latest.pt").exists()
