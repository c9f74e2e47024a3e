"""Steps whose GroupNorms are one operation each are the steps of the module, whatever surrounds the norms."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from fastlocal.executors.base import LocalProblem
from fastlocal.executors.scripted import fuse_norms, trace
from fastlocal.executors.scripted.trace import ScriptedSteps
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.kernels import native
from fastlocal.params.precision import Numerics
from tests.executors.problems import CPU, assert_same, in_plain_torch, start
from tests.executors.test_threaded import problem_with
from tests.helpers import small_models
from tests.training.test_loop_equivalences import run as train_in


class Norms(nn.Module):
    """16 channels and two norms, of which `kind` says what follows them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.before, self.between = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(4, 16), nn.GroupNorm(16, 16, affine=kind != "plain weights")
        for value in self.norm1.parameters():
            value.data += torch.linspace(-0.3, 0.4, 16)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        first = self.norm1(x)
        if self.kind == "in place":
            x = F.silu(first, inplace=True)
            x = F.relu(self.norm2(self.between(x)), inplace=True)
        elif self.kind == "in place sum":  # as torchvision's ResNets
            x = F.relu(first, inplace=True)
            value = self.norm2(self.between(x))
            value += x
            x = F.relu(value, inplace=True)
        elif self.kind == "added to":
            x = F.silu(first)
            value = 2 * x
            value += self.norm2(self.between(x))
            x = F.relu(value)
        elif self.kind == "relu":
            x = F.relu(first)
            x = F.relu(x + self.norm2(self.between(x)))
        elif self.kind == "silu":
            x = F.silu(first)
            x = F.silu(self.norm2(self.between(x)) + x)
        elif self.kind == "twice":
            x = F.silu(first) + first
            x = F.relu(self.norm2(self.between(x)))
        elif self.kind == "sums":  # of other shapes, with itself, scaled, and of two norms
            x = F.silu(first + first)
            x = F.silu(torch.add(self.norm2(self.between(x)), x, alpha=2.0) + x.mean(dim=0, keepdim=True))
        elif self.kind == "both":
            x = F.silu(first + self.norm2(self.between(x)))
        elif self.kind == "seen":
            x = F.silu(first)
            added = self.norm2(self.between(x)) + x
            x = F.silu(added) * added
        else:
            x = torch.tanh(first)
            x = self.norm2(self.between(x))
        return self.linear(x.mean(dim=(2, 3)))


FUSED = {
    "relu": ["relu", "relu+"],
    "silu": ["silu", "silu+"],
    "in place": ["none", "relu"],
    "in place sum": ["relu", "relu+"],
    "added to": ["none", "silu"],
    "twice": ["none", "relu"],
    "sums": ["none", "none"],
    "both": ["none", "silu+"],
    "seen": ["none", "silu"],
    "plain": ["none", "none"],
    "plain weights": ["none"],
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations of the norms that traced steps have as one operation, + for a residual."""
    names: list[str] = []
    find = fuse_norms.find

    def noted(calls: Iterable[Node]) -> list[fuse_norms.FusedNorm]:
        norms = find(calls)
        names.extend(norm.activation + "+" * (norm.residual is not None) for norm in norms)
        return norms

    monkeypatch.setattr(fuse_norms, "find", noted)
    return names


def assert_steps(problem: LocalProblem) -> None:
    """They are those of the module, and traced."""
    stack, plan = start(problem)
    executor = ThreadedExecutor(problem, workers=2, channels_last=True)
    result = executor.run_round(stack, plan)
    assert all(isinstance(own, ScriptedSteps) for own in executor._steps_for(plan))
    assert_same((stack, result), in_plain_torch(problem), 2e-5)


@pytest.mark.parametrize("kind", FUSED)
def test_steps_are_those_of_the_module(kind: str, found: list[str]) -> None:
    assert_steps(problem_with(Norms(kind)))
    assert sorted(found) == FUSED[kind]


@pytest.mark.parametrize("kind", ["relu", "silu", "both"])
def test_in_bf16_too(kind: str, found: list[str]) -> None:
    problem = dataclasses.replace(problem_with(Norms(kind)), numerics=Numerics(CPU, torch.float32, torch.bfloat16))
    stack, plan = start(problem)
    losses = ThreadedExecutor(problem, workers=2, channels_last=True).run_round(stack, plan).losses
    (exact, wanted), (begun, _) = in_plain_torch(problem), start(problem)
    torch.testing.assert_close(losses.double(), wanted.losses.double(), rtol=0.02, atol=0.02)
    assert (stack.params - exact.params).norm() < 0.05 * (begun.params - exact.params).norm()
    assert sorted(found) == FUSED[kind]


@pytest.mark.parametrize("layout", ["rows", "double", "channels"])
def test_what_the_operation_does_not_take_is_left_to_torch(layout: str, found: list[str]) -> None:
    module = (
        Norms("silu")
        if layout != "channels"
        else nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 4 * 3, 4))
    )
    problem = problem_with(module, torch.float64 if layout == "double" else torch.float32)
    executor = ThreadedExecutor(problem, workers=2, channels_last=layout != "rows")
    stack, plan = start(problem)
    assert_same((stack, executor.run_round(stack, plan)), in_plain_torch(problem), 2e-5)
    assert found == []


def test_without_a_compiler_steps_are_as_torch_makes_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "load", lambda folder: "there is no C++ compiler")
    trace._has_native.cache_clear()
    with caplog.at_level(logging.INFO):
        assert_steps(problem_with(Norms("silu")))
    trace._has_native.cache_clear()
    assert "threaded steps do without operations in C++: there is no C++ compiler" in caplog.text


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_the_layout_by_rule(channels: int, precision: str, tmp_path: Path) -> None:
    """bf16 images are channels-last where their norms are ours, as torch's take three times as long there."""
    module = nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.GroupNorm(2, channels), nn.SiLU(), nn.Flatten(), nn.Linear(channels * 12, 4)
    )
    train_in(tmp_path / "run", module, small_models.images(), executor="threaded", precision=precision, rounds=1)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["machine"]
    assert stored["channels_last"] is (precision == "fp32" or precision == "bf16" and channels == 16)
