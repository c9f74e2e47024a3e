"""Buffers that forward changes stay with their client: through an interruption, on any ranks, in any chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import run_each

CLIENTS = 4


class Follows(nn.Module):
    """Centers its inputs by a moving average, counts its steps, drops, and follows its own weight."""

    mean: Tensor
    steps: Tensor
    phase: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.teacher = nn.Parameter(torch.zeros(8, 6), requires_grad=False)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(dim=0), 0.2)
                self.steps += 1
                self.phase *= torch.exp(1j * self.mean[:3])
                self.teacher.lerp_(self.first.weight, 0.1)
        hidden = self.drop(torch.relu(self.first(x - self.mean) + x @ self.teacher.T))
        return self.last(hidden) * self.phase.real


def train(directory: Path, rounds: int = 4, module: nn.Module | None = None, **more: Any) -> fastlocal.Run:
    torch.manual_seed(3)
    data = torch.randn(160, 6), torch.arange(160) % 3
    settings = {"executor": "stacked", "momentum": 0.5, "precision": "fp64", "progress": False, **more}
    return fastlocal.train(
        module or Follows(), data, data, clients=CLIENTS, local_steps=3, batch_size=4, rounds=rounds, lr=0.1,
        directory=directory, **settings,
    )  # fmt: skip


def assert_same(run: Path, other: Path, tolerance: float = 0.0) -> None:
    states = [torch.load(path / "latest.pt") for path in (run, other)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    state = train(directory).model.state_dict()
    assert int(state["steps"]) == 12 and state["mean"].norm() > 0 and state["teacher"].norm() > 0
    return directory


def test_through_an_interruption(whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", rounds=2)
    train(tmp_path / "run", rounds=4, resume=True)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("more", [{"chunk": 3}, {"executor": "looped"}, {"executor": "threaded"}], ids=str)
def test_in_chunks_and_by_each_executor(more: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", **more)
    assert_same(tmp_path / "run", whole, 1e-9)


class Counts(nn.Linear):
    """Counts its calls in a buffer that others may share."""

    calls: Tensor

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__(size, outputs)
        self.register_buffer("calls", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / (1.0 + self.calls.clone())


@pytest.mark.parametrize("executor", ["looped", "stacked"])
def test_a_buffer_with_two_names_stays_one(executor: str, tmp_path: Path) -> None:
    module = nn.Sequential(Counts(6, 6), Counts(6, 3))
    module[1].calls = module[0].calls
    model = train(tmp_path / "run", rounds=2, module=module, executor=executor).model
    assert isinstance(model, nn.Sequential) and model[0].calls is model[1].calls and float(model[0].calls) == 2 * 6


PROGRAM = """
import sys
from pathlib import Path
from tests.training.test_client_state import train
train(Path(sys.argv[1]), rounds=int(sys.argv[2]), resume=sys.argv[3] == "resume", timeout=120.0, device="cpu")
"""


def test_on_two_ranks_and_on_from_there_on_one(whole: Path, fork_server: ForkServer, tmp_path: Path) -> None:
    """Either way the whole; half of it by two ranks is gone on with by one, which deals the clients anew."""
    words = [tmp_path / "run", 2, "start"]
    for status, said in run_each(fork_server, tmp_path / "log{rank}", words, words, program=PROGRAM):
        assert status == 0, said
    train(tmp_path / "run", rounds=4, resume=True)
    assert_same(tmp_path / "run", whole, 1e-9)
