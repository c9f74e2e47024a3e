"""Rounds that are too small for torch's intra-op threads have one, and evaluations keep those of the process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastlocal
from fastlocal.common.torch_threads import torch_threads
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.training.evaluator import Evaluator


@pytest.mark.parametrize(("inputs", "threads"), [(4, 1), (3000, 2)])
@pytest.mark.parametrize("sweep", [False, True])
def test_small_rounds_have_one_thread(
    sweep: bool, inputs: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {"train": set(), "evaluate": set()}
    run_jobs, load = StackedExecutor.run_jobs, Evaluator.load_global_model

    def noted_jobs(*arguments: Any) -> Any:
        seen["train"].add(torch.get_num_threads())
        return run_jobs(*arguments)

    def noted_load(*arguments: Any) -> None:
        seen["evaluate"].add(torch.get_num_threads())
        load(*arguments)

    monkeypatch.setattr(StackedExecutor, "run_jobs", noted_jobs)
    monkeypatch.setattr(Evaluator, "load_global_model", noted_load)
    data = torch.randn(60, inputs), torch.arange(60) % 10
    train: Any = partial(fastlocal.sweep, over={"seed": [0, 1]}) if sweep else fastlocal.train
    with torch_threads(2):
        train(
            nn.Linear(inputs, 10), data, data, clients=6, batch_size=2, rounds=2, directory=tmp_path / "run",
            executor="stacked", device="cpu", progress=False,
        )  # fmt: skip
        assert torch.get_num_threads() == 2
    assert seen == {"train": {threads}, "evaluate": {2}}
