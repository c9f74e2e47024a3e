"""Steps whose maximum pooling is one operation each way are the steps of the module, wherever the ReLU is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from fastlocal.executors.scripted import fuse_pools
from fastlocal.executors.scripted.trace import ScriptedSteps
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.params.precision import Numerics
from tests.executors.problems import CPU, assert_same, in_plain_torch, start
from tests.executors.test_fuse_norms import assert_steps
from tests.executors.test_threaded import problem_with


class Pools(nn.Module):
    """Images of 6 x 5 pixels and 7 or 32 channels through a pooling, of which `kind` says what is around it."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.before, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.GroupNorm(1, channels)
        self.after, self.linear = nn.Conv2d(channels, 4, 1), nn.LazyLinear(4)
        self(torch.zeros(2, 3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pooled(self.before(x)).flatten(1))

    def pooled(self, x: Tensor) -> Tensor:
        if self.kind == "relu before":
            return F.max_pool2d(F.relu(x), 2)
        if self.kind == "relu after":
            return F.relu(F.max_pool2d(x, 2))
        if self.kind == "in place":
            return F.relu_(F.max_pool2d(F.relu_(x), 3, stride=2, padding=1))
        if self.kind == "no relu":
            return F.max_pool2d(torch.tanh(x), (2, 3), stride=(3, 1), ceil_mode=True)
        if self.kind == "images after":
            return self.after(F.max_pool2d(F.relu(x), 2, stride=1))
        if self.kind == "after a norm":
            return F.max_pool2d(F.relu(self.norm(x)), 2)
        if self.kind == "relu seen":
            x = F.relu(x)
            return F.max_pool2d(x, 2) + x.mean()
        if self.kind == "argument changed":
            seen = F.relu(x)
            x.mul_(1.005)
            return F.max_pool2d(seen, 2) + x.mean()
        if self.kind == "two in a row":
            return F.max_pool2d(F.relu(F.max_pool2d(x, 2)), 2, stride=1)
        if self.kind == "pool seen":
            x = F.max_pool2d(x, 2)
            return F.relu(x) + x
        if self.kind == "dilated":
            return F.max_pool2d(F.relu(x), 2, dilation=2)
        x, places = F.max_pool2d(F.relu(x), 2, return_indices=True)
        return F.max_unpool2d(x, places, 2, output_size=(6, 5))


FUSED = {
    "relu before": ["relu contiguous"],
    "relu after": ["relu contiguous"],
    "in place": ["relu"],
    "no relu": ["none contiguous"],
    "images after": ["relu"],
    "after a norm": ["none contiguous"],
    "relu seen": ["none"],
    "argument changed": ["none"],
    "two in a row": ["relu contiguous", "none"],
    "pool seen": ["none"],
    "dilated": [],
    "unpooled": [],
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activations of the poolings that traced steps have as one operation, and whether they make rows."""
    names: list[str] = []
    find = fuse_pools.find

    def noted(calls: Iterable[Node], fused: Collection[Node]) -> Iterator[fuse_pools.FusedPool]:
        for pool in find(calls, fused):
            names.append(pool.activation + " contiguous" * pool.is_contiguous)
            yield pool

    monkeypatch.setattr(fuse_pools, "find", noted)
    return names


@pytest.mark.parametrize("channels", [7, 32])
@pytest.mark.parametrize("kind", FUSED)
def test_steps_are_those_of_the_module(kind: str, channels: int, found: list[str]) -> None:
    assert_steps(problem_with(Pools(kind, channels)))
    fused = FUSED[kind]
    assert found == (["relu contiguous"] if (kind, channels) == ("after a norm", 7) else fused)


def test_in_bf16_too(found: list[str]) -> None:
    torch.manual_seed(0)
    problem = problem_with(Pools("in place", 32))
    problem = dataclasses.replace(problem, numerics=Numerics(CPU, torch.float32, torch.bfloat16))
    stack, plan = start(problem)
    losses = ThreadedExecutor(problem, workers=2, channels_last=True).run_round(stack, plan).losses
    (exact, wanted), (begun, _) = in_plain_torch(problem), start(problem)
    torch.testing.assert_close(losses.double(), wanted.losses.double(), rtol=0.04, atol=0.04)
    assert (stack.params - exact.params).norm() < 0.05 * (begun.params - exact.params).norm()
    assert found == ["relu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_the_operation_does_not_take_is_left_to_torch(dtype: torch.dtype, found: list[str]) -> None:
    """Contiguous images, and images in float64."""
    problem = problem_with(Pools("relu before", 32), dtype)
    executor = ThreadedExecutor(problem, workers=2, channels_last=dtype == torch.float64)
    stack, plan = start(problem)
    assert_same((stack, executor.run_round(stack, plan)), in_plain_torch(problem), 2e-5)
    assert found == []


def test_what_is_not_a_number_stays_visible() -> None:
    """A pixel that is NaN is the maximum of its window, as in torch, and takes the gradient."""
    problem = problem_with(Pools("relu before", 7))
    stack, plan = start(problem)
    stack.params[1, 0] = float("nan")
    executor = ThreadedExecutor(problem, workers=1, channels_last=True)
    result = executor.run_round(stack, plan)
    assert all(isinstance(own, ScriptedSteps) for own in executor._steps_for(plan))
    assert result.losses[:, 1].isnan().all() and stack.params[1].isnan().any()
    assert not result.losses[:, 0].isnan().any() and not stack.params[0].isnan().any()
