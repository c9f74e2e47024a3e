"""Compiled steps are the steps, and nothing is compiled again once a round has been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.executors.unequal_rows import ROW_COUNTS
from fastlocal.telemetry.base import Logger, RoundReport
from tests.helpers import command_line, small_models
from tests.training.test_loop_equivalences import assert_same, run


class Graphs(Logger):
    """How many graphs torch had compiled after each round."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def round(self, report: RoundReport) -> None:
        self.seen.append(counters["stats"]["unique_graphs"])


PHASES = {"decay1": 2, "decay2": 3, "step1": 2, "step2": 3, "step3": 1, "gamma": 0.5}


@pytest.mark.usefixtures("scalar_inductor")
def test_nothing_is_compiled_after_the_first_round(tmp_path: Path) -> None:
    """With all that a step may have: momentum, noisy labels, a clipped gradient."""
    hard = {"momentum": 0.9, "nesterov": True, "label_noise": True, "noise_p": 0.3, "clip_norm": 0.1}
    # 5 clients in chunks of 4 and 1; other rates and another H in each phase; an evaluation after each round
    values: dict[str, Any] = {"executor": "stacked", "chunk": 4, "precision": "fp32", **PHASES, **hard}
    graphs = Graphs()
    before = counters["stats"]["unique_graphs"]
    compiled = run(
        tmp_path / "compiled", small_models.make("perceptron"), small_models.images(), graphs, compile=True, **values
    )
    plain = run(tmp_path / "plain", small_models.make("perceptron"), small_models.images(), **values)
    assert_same(compiled, plain, 1e-4)
    assert isinstance(compiled.executor, StackedExecutor) and compiled.executor.compiler is not None
    # forward and backward pass together, and the update, for each of the two sizes
    assert compiled.executor.compiler.graphs == 4
    assert len(graphs.seen) > 4 and {count - before for count in graphs.seen} == {4}


def test_unequal_clients_compile_a_few_numbers_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are done are masked; short batches are not compiled. The graphs run as torch's own operations."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", torch._dynamo.lookup_backend("aot_eager"))
    values: dict[str, Any] = {"executor": "stacked", "precision": "fp32", "clip_norm": 0.1, "wd": 0.1}
    values |= {"client_optimizer": "adamw", "adam_eps": 1e-3}
    values |= {"partition": "quantity", "local_epochs": 1.0, "last_batch": "partial", "rounds": 1}
    values |= {"step1": 1, "start_lr": None, "client_lr": 0.05, "total_batch_size": 8}
    compiled, plain = (
        run(tmp_path / str(wanted), small_models.make("perceptron"), small_models.images(), compile=wanted, **values)
        for wanted in (True, False)
    )
    assert_same(compiled, plain, 1e-4)
    assert isinstance(compiled.executor, StackedExecutor) and compiled.executor.compiler is not None
    # forward and backward pass, and the update, of each number; the first step, of all rows, is not masked
    assert 2 < compiled.executor.compiler.graphs <= 2 * ROW_COUNTS + 1


class Opaque(nn.Module):
    """vmap can take it, torch.compile cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    @torch._dynamo.disable
    def hidden(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)


def test_a_model_that_does_not_compile_is_an_error(tmp_path: Path) -> None:
    data = torch.randn(20, 4), torch.arange(20) % 3
    with pytest.raises(UsageError, match="compile=True: torch.compile cannot take this model") as caught:
        fastlocal.train(
            Opaque(), data, data, clients=2, batch_size=2, rounds=1, directory=tmp_path / "run", compile=True
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--executor", "looped", "--compile", "1"], "--compile 1: is for --executor stacked"),
        (["--executor", "looped", "--cuda-graph"], "--cuda-graph 1: is for --executor stacked"),
        (["--executor", "stacked", "--cuda-graph"], "--cuda-graph 1: the run is on cpu, not on a CUDA GPU"),
    ],
)
def test_what_cannot_be_had_is_an_error(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = command_line.write_npz(tmp_path / "data.npz")
    result = command_line.run(capsys, *command_line.train_words(data, tmp_path / "run"), *flags)
    assert result.status == 2 and said in result.err and len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
