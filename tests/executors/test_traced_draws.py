"""Steps with random draws are traced: the draws belong to seed, client and step, as in the other executors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.scripted import trace
from fastlocal.executors.scripted.trace import ScriptedSteps
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.kernels import native
from tests.executors.problems import assert_same, start
from tests.executors.test_threaded import problem_with


class Drawing(nn.Module):
    """Draws of three kinds in a step, each client's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 5, 3), nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout2d(torch.tanh(self.conv(x)), 0.4, self.training)
        x = nn.functional.dropout(x.flatten(1), 0.3, self.training)
        return self.linear(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_random_draws_are_traced(channels_last: bool) -> None:
    """They belong to seed, client and step, as in the looped executor; runs of two seeds share the traced step."""
    module = Drawing()
    one = problem_with(module, torch.float64, draws=True, seed=5)
    other = dataclasses.replace(one, seed=2**62 + 1)
    executor = ThreadedExecutor(one, workers=2, channels_last=channels_last)
    losses = []
    for threaded in (executor, executor.replica(other)):
        (stack, plan), (copies, _) = start(one), start(one)
        result, wanted = threaded.run_round(stack, plan), LoopedExecutor(threaded.problem).run_round(copies, plan)
        assert all(isinstance(own, ScriptedSteps) for own in threaded._steps_for(plan))
        assert_same((stack, result), (copies, wanted), 1e-11)
        losses.append(result.losses)
    assert not torch.allclose(*losses)
    assert executor._scripts is threaded._scripts and len(executor._scripts) == 1


def test_random_draws_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda folder: "there is no C++ compiler")
    trace._has_native.cache_clear()
    problem = problem_with(Drawing(), torch.float64, draws=True)
    executor = ThreadedExecutor(problem, workers=1)
    (stack, plan), (copies, _) = start(problem), start(problem)
    result = executor.run_round(stack, plan)
    assert_same((stack, result), (copies, LoopedExecutor(problem).run_round(copies, plan)), 1e-11)
    assert "it draws random numbers, which takes an operation in C++" in result.notes[0]
    trace._has_native.cache_clear()
