"""Where memory runs out, fewer clients are stepped at once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.config.schema import RunConfig
from fastlocal.executors.cuda_graphs import GraphedExecutor, preserve_buffers
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.round_plan import LocalStep
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.client_stack import ClientStack
from fastlocal.params.label_noise import LabelNoise
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.executor_trial import try_step
from tests.executors.problems import assert_same, problem_of, start
from tests.helpers import command_line


class Scarce(StackedExecutor):
    """Has memory for the activations of `room` clients, from local step `since` on."""

    def __init__(self, problem: Any, room: int, since: int = 0) -> None:
        super().__init__(problem)
        self.room, self.since, self.sizes = room, since, list[int]()

    def _step(self, stack: ClientStack, step: LocalStep, plain: bool) -> tuple[Tensor, Tensor | None]:
        self.sizes.append(len(stack.params))
        if len(stack.params) > self.room and len(self.sizes) > self.since:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super()._step(stack, step, plain)


@pytest.mark.parametrize("since", [0, 2])
@pytest.mark.parametrize("graphed", [False, True])
def test_the_result_is_the_same(graphed: bool, since: int) -> None:
    problem = problem_of("batchnorm", noise=LabelNoise(p=0.5, classes=4, seed=2), nesterov=True, clip_norm=0.5)
    scarce = Scarce(problem, room=2, since=since)
    stack, plan = start(problem, clients=5)
    executor = GraphedExecutor(scarce, lambda program: program.step) if graphed else scarce
    result = executor.run_round(stack, plan)
    wanted, _ = start(problem, clients=5)
    assert_same((stack, result), (wanted, StackedExecutor(problem).run_round(wanted, plan)), 1e-12)
    assert result.notes == (
        "out of memory: 3 of 5 resident clients are stepped at once now",
        "out of memory: 2 of 5 resident clients are stepped at once now",
    )
    scarce.sizes.clear()
    assert executor.run_round(stack, plan).notes == ()
    assert scarce.sizes == [2, 2, 1] * plan.local_steps


def test_one_client_that_does_not_fit_is_an_error() -> None:
    problem = problem_of("perceptron")
    stack, plan = start(problem)
    with pytest.raises(torch.OutOfMemoryError):
        Scarce(problem, room=0).run_round(stack, plan)


def test_one_client_that_does_not_fit_is_said_in_one_line() -> None:
    problem = problem_of("perceptron")
    config = RunConfig().with_values(batch_size=7, total_batch_size=21, chunk=3)
    with pytest.raises(UsageError, match="--batch-size 7: one client's step does not fit into the memory of cpu"):
        try_step(Scarce(problem, room=0), config)
    try_step(Scarce(problem, room=1), config)


def test_a_run_whose_memory_ends_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LoopedExecutor, "run_round", full)
    words = command_line.train_words(command_line.write_npz(tmp_path / "data.npz"), tmp_path / "run")
    outcome = command_line.run(capsys, *words, "--executor", "looped")
    assert outcome.status == 1 and len(outcome.err.splitlines()) == 1
    assert "cpu has no memory left; lower --batch-size, --chunk or --memory-limit" in outcome.err


def test_what_a_capture_tries_out_is_undone() -> None:
    stack, _ = start(problem_of("perceptron"))
    assert stack.momentum is not None
    params, momentum = stack.params.clone(), stack.momentum.clone()
    with preserve_buffers(stack):
        stack.params.add_(1)
        stack.momentum.zero_()
    assert torch.equal(stack.params, params) and torch.equal(stack.momentum, momentum)


def test_a_user_s_own_loss_that_runs_out_is_retried_from_the_step_s_start() -> None:
    calls = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return cross_entropy(outputs, targets)

    problem = problem_of("perceptron", noise=None)
    failing = problem_of("perceptron", noise=None, loss=loss)
    (stack, plan), (wanted, _) = start(problem), start(problem)
    result = StackedExecutor(failing).run_round(stack, plan)
    assert_same((stack, result), (wanted, StackedExecutor(problem).run_round(wanted, plan)), 1e-12)
