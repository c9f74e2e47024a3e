"""Several runs as rows of one captured step: each trains as on the CPU alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fastlocal.executors import cuda_graphs
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.cuda_graphs import CudaGraphs, GraphedExecutor
from fastlocal.executors.jobs import ChunkJob
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.client_stack import ClientStack
from fastlocal.params.correction import Correction
from fastlocal.params.label_noise import LabelNoise
from tests.executors.problems import problem_of
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.test_step_programs import ADAMW, CPU, CUDA, on_cuda, plan_of

DRAWS = {"draws": True}
"""The module has dropout."""


class WithDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(90, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.dropout(self.first(x.flatten(1)).relu(), 0.3))


def runs(problem: LocalProblem) -> list[LocalProblem]:
    """Return three runs that differ in all that rows may differ in."""
    found = []
    for seed, p, momentum, decay in ((0, 0.5, 0.9, 0.03), (7, 0.0, 0.5, 0.0), (2**40 + 3, 1.0, 0.9, 0.1)):
        source = problem.source.with_seed(seed)  # type: ignore[attr-defined]
        noise = LabelNoise(p=p, classes=4, seed=seed)
        own: dict[str, Any] = {"weight_decay": decay, "noise": noise, "seed": seed}
        if problem.adamw is None:
            own["momentum"] = momentum
        found.append(dataclasses.replace(problem, source=source, **own))
    return found


def stacks(problem: LocalProblem, count: int, corrected: bool) -> list[ClientStack]:
    """Return the rows of each run, of two, one and two clients; `corrected` under an algorithm with all its terms."""
    generator = torch.Generator().manual_seed(3)
    row = problem.layout.flatten({name: value.to(CPU) for name, value in problem.module.named_parameters()})
    found = []
    for clients in (2, 1, 2)[:count]:
        noise = [0.02 * torch.randn(clients, row.numel(), generator=generator).to(row.dtype) for _ in range(2)]
        stack = problem.stack(clients)
        stack.params.copy_(row + noise[0])
        assert stack.momentum is not None
        stack.momentum.copy_(noise[1])
        if stack.square is not None:
            stack.square.copy_(noise[1] ** 2)
        if corrected:
            center, prox, drift = (row + noise[1][0]), torch.full((clients,), 0.5 * clients), 3 * noise[0]
            terms = (value.to(stack.params) for value in (center, prox, drift))
            stack = dataclasses.replace(stack, correction=Correction(*terms))
        found.append(stack)
    return found


@pytest.mark.parametrize("name", ["perceptron", "dropout", "adamw"])
def test_rows_of_several_runs(name: str, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two rounds, in which the runs are at other steps, as where one has taken the rows of another."""
    monkeypatch.setattr(cuda_graphs, "WARM_UPS", 1)

    def make() -> LocalProblem:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            extra = {"dropout": {"module": WithDropout(), **DRAWS}, "adamw": ADAMW}.get(name, {})
        return problem_of("perceptron", torch.float32, **extra)

    alone = make()
    expected = stacks(alone, 3, name == "perceptron")
    losses = []
    for round_number in range(2):
        for place, (stack, one) in enumerate(zip(expected, runs(alone), strict=True)):
            plan = plan_of(one, range(len(stack.params)), 1, 3, 11 + round_number + 5 * place)
            losses.append(StackedExecutor(one).run_round(stack, plan).losses)
    with rehearsed(interpret=True) as device:
        base = runs(on_cuda(make()))[0]
        executor = GraphedExecutor(StackedExecutor(base), CudaGraphs())
        found, results = stacks(base, 3, name == "perceptron"), []
        for round_number in range(2):
            jobs = []
            for place, (stack, one) in enumerate(zip(found, runs(base), strict=True)):
                plan = plan_of(one, range(len(stack.params)), 1, 3, 11 + round_number + 5 * place)
                jobs.append(ChunkJob(executor.replica(one), one, stack, plan))
            results += [result.losses.to(CPU) for result in executor.run_jobs(jobs)]
        assert device.count("graph") == 2, "one program replays all rows of a round"
        assert base.numerics.device == CUDA
        ended = [(stack.params.to(CPU), stack.momentum.to(CPU)) for stack in found]
    for ours, theirs in zip(results, losses, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for (params, momentum), theirs in zip(ended, expected, strict=True):
        torch.testing.assert_close(params, theirs.params, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(momentum, theirs.momentum, rtol=1e-4, atol=1e-5)
