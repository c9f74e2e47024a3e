"""What is found out about a module beforehand: deep networks in bf16 are stacked, wrong rules of vmap are not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.module_checks import first_steps


class Block(nn.Module):
    """Of a residual network, in 4 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def test_a_deep_network_in_bf16_is_stacked(tmp_path: Path) -> None:
    """Its gradients under vmap are off by 0.25 from the plain module's, which are off by as much from those of fp32."""
    torch.manual_seed(0)
    blocks = [Block() for _ in range(16)]
    module = nn.Sequential(nn.Conv2d(3, 4, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    data = torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    result = fastlocal.train(
        module, data, data, clients=2, batch_size=8, rounds=1, lr=1e-4, precision="bf16", executor="stacked",
        directory=tmp_path / "run", device="cpu", tune_seconds=0.0,
    )  # fmt: skip
    assert len(result.history) == 1


def test_a_network_whose_steps_are_rounding_is_stacked(tmp_path: Path) -> None:
    """Norms over three values amplify rounding: in float32 its steps under vmap and the plain ones differ by 1.5."""
    torch.manual_seed(0)
    blocks = [part for _ in range(10) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())]
    data = torch.randn(24, 16), torch.arange(24) % 4
    result = fastlocal.train(
        nn.Sequential(*blocks, nn.Linear(16, 4)), data, data, clients=2, batch_size=3, rounds=1, lr=1e-4,
        executor="stacked", directory=tmp_path / "run", device="cpu", tune_seconds=0.0,
    )  # fmt: skip
    assert len(result.history) == 1


def test_looped_steps_that_rounding_sets_apart_are_compared_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where two passes of the same operations round differently."""
    monkeypatch.setitem(first_steps.TOLERANCES, torch.float32, -1.0)
    data = torch.randn(24, 4), torch.arange(24) % 3
    run = {"clients": 2, "batch_size": 4, "rounds": 1, "device": "cpu", "executor": "looped"}
    assert fastlocal.train(nn.Linear(4, 3), data, data, directory=tmp_path / "run", **run).history  # type: ignore[arg-type]

    class Remembers(nn.Linear):
        calls = threading.local()  # in which nothing is looked for

        def forward(self, x: Tensor) -> Tensor:
            self.calls.count = getattr(self.calls, "count", 0) + 1
            return super().forward(x) / self.calls.count

    with pytest.raises(ValueError, match="does not take the steps|changes"):
        fastlocal.train(Remembers(4, 3), data, data, directory=tmp_path / "other", **run)  # type: ignore[arg-type]


class Doubled(torch.autograd.Function):
    """The identity, whose rule for vmap doubles the gradient."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def vmap(info: object, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return 2 * x - x.detach(), in_dims[0]


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Doubled.apply(self.linear(x))
        return y


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_rule_of_vmap_is_found_in_every_precision(precision: str, tmp_path: Path) -> None:
    data = torch.randn(16, 4), torch.arange(16) % 3
    with pytest.raises(UsageError, match="first steps under vmap are not those of the plain module"):
        fastlocal.train(
            Wrong(), data, data, clients=2, batch_size=8, rounds=1, precision=precision, executor="stacked",
            directory=tmp_path / "run", device="cpu",
        )  # fmt: skip


class ReadsStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(x) + self.norm.running_mean * 0.5)
        return y


def test_running_statistics_that_forward_reads_are_refused(tmp_path: Path) -> None:
    data = torch.randn(16, 4), torch.arange(16) % 3
    with pytest.raises(UsageError, match="local steps keep no running statistics of a norm in training mode"):
        fastlocal.train(
            ReadsStatistics(), data, data, clients=2, batch_size=8, rounds=1, directory=tmp_path / "run", device="cpu"
        )
    assert not (tmp_path / "run").exists()
