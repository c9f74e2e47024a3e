"""A round of one step program is the round of the stacked executor, whatever changes between rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastlocal import kernels
from fastlocal.executors.cuda_graphs import CudaGraphs, GraphedExecutor, StepProgram
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.round_plan import RoundPlan, RoundResult
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.kernels import indices
from fastlocal.params.client_optimizer import AdamW
from fastlocal.params.client_stack import ClientStack
from fastlocal.params.label_noise import LabelNoise
from tests.executors.problems import assert_same, problem_of, start

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU to capture on")
NOISE = LabelNoise(p=0.5, classes=4, seed=2)
ADAMW: dict[str, Any] = {"momentum": 0.0, "adamw": AdamW(0.9, 0.99, 1e-6), "clip_norm": 0.5}
ON_THE_HOST = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}


def uncaptured(problem: Any) -> GraphedExecutor:
    return GraphedExecutor(StackedExecutor(problem), lambda program: program.step)


def plan_of(steps: int, clients: range, first_step: int, rate: float, dtype: torch.dtype) -> RoundPlan:
    """Another plan for every first step; clients of any chunking see the same samples and rates."""
    generator = torch.Generator().manual_seed(first_step)
    ids = torch.randint(0, 60, (steps, 8, 5), generator=generator)
    rates = rate * (1 + torch.arange(8, dtype=dtype)).expand(steps, 8)
    here = slice(clients.start, clients.stop)
    return RoundPlan(torch.arange(8)[here], first_step, rates[:, here], ids[:, here])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("perceptron", {"momentum": 0.0}),
        ("batchnorm", {"nesterov": True, "noise": NOISE, "clip_norm": 0.5}),
        ("odd", {"nesterov": True, "noise": NOISE, "clip_norm": 0.5}),
        ("odd", ADAMW),
        ("words", ADAMW),
    ],
)
def test_rounds_of_programs_are_stacked_rounds(name: str, values: dict[str, Any]) -> None:
    problem = problem_of(name, **values)
    graphed, plain = uncaptured(problem), StackedExecutor(problem)
    stacks = [start(problem, clients=5)[0] for _ in range(2)]
    first = 0
    # phases of other H and rates, chunks of 3 and 2 clients, more steps than the first program has room for
    for steps, rate in ((3, 0.02), (3, 0.02), (5, 0.01), (1, 0.005), (19, 0.001)):
        for clients in (range(0, 3), range(3, 5)):
            plan = plan_of(steps, clients, first, rate, problem.numerics.dtype)
            part = slice(clients.start, clients.stop)
            ours, wanted = (
                (stack.part(part), executor.run_round(stack.part(part), plan))
                for stack, executor in zip(stacks, (graphed, plain), strict=True)
            )
            assert_same(ours, wanted, 1e-12)
        first += steps


def unequal(plan: RoundPlan, steps: list[int], short: dict[tuple[int, int], int]) -> RoundPlan:
    """The plan, of which each row takes so many steps, those of `short` (step, row) with so many samples."""
    sizes = (torch.arange(plan.local_steps)[:, None] < torch.tensor(steps)) * plan.batch
    for (step, row), size in short.items():
        sizes[step, row] = size
    return dataclasses.replace(plan, sizes=sizes)


STEPS_OF = [9, 7, 7, 4, 2, 2, 1, 1]
SHORT = {(8, 0): 2, (6, 1): 3, (6, 2): 3, (3, 1): 4, (3, 2): 4, (1, 4): 1, (0, 7): 3}


@pytest.mark.parametrize(
    ("name", "values"), [("perceptron", {"clip_norm": 0.5}), ("groupnorm", ADAMW), ("odd", {"clip_norm": 0.5})]
)
def test_unequal_rounds_of_programs(name: str, values: dict[str, Any]) -> None:
    """By rows of fixed numbers and by plain steps, as one client after the other; rows that are done stay."""
    problem = problem_of(name, noise=NOISE, **values)
    counted = Counted()
    graphed = GraphedExecutor(StackedExecutor(problem, by_parameter=False), counted)
    for first in (3, 90):
        plan = unequal(plan_of(9, range(8), first, 0.01, torch.float64), STEPS_OF, SHORT)
        stacks = [start(problem, clients=8)[0] for _ in range(3)]
        wanted = LoopedExecutor(problem).run_round(stacks[0], plan)
        for stack, executor in zip(stacks[1:], (graphed, StackedExecutor(problem)), strict=True):
            found = executor.run_round(stack, plan)
            assert_same((stack, found), (stacks[0], wanted), 1e-12)
            assert not found.losses[plan.sizes == 0].any()
    assert [len(program.stack.params) for program in counted.programs] == [8, 4, 1] * 2, "each for rows of its own"
    before = stacks[1].params.clone()
    none = unequal(plan_of(1, range(8), 5, 0.01, torch.float64), [1, *[0] * 7], {})
    graphed.run_round(stacks[1], none)
    assert torch.equal(stacks[1].params[1:], before[1:]) and not torch.equal(stacks[1].params[0], before[0])


class Counted:
    """A capture that only counts, and takes the steps as they are."""

    def __init__(self) -> None:
        self.programs: list[StepProgram] = []

    def __call__(self, program: StepProgram) -> Any:
        self.programs.append(program)
        return program.step


def test_programs_are_made_once_for_each_chunk_size() -> None:
    problem = problem_of("perceptron")
    counted = Counted()
    executor = GraphedExecutor(StackedExecutor(problem), counted)
    stack = start(problem, clients=5)[0]

    def round_of(steps: int, clients: range) -> None:
        plan = plan_of(steps, clients, 0, 0.01, torch.float64)
        executor.run_round(stack.part(slice(0, len(clients))), plan)  # as the loop does: every chunk in the same rows

    for steps in (2, 4, 1, 16):
        round_of(steps, range(0, 3))
        round_of(steps, range(3, 5))
    assert [len(program.stack.params) for program in counted.programs] == [3, 2]
    round_of(17, range(0, 3))
    assert len(counted.programs) == 3


def events(program: StepProgram, activities: list[ProfilerActivity]) -> dict[str, int]:
    with profile(activities=activities) as seen:
        program.step()
    return {event.key: event.count for event in seen.key_averages()}


@pytest.mark.parametrize("name", ["batchnorm", "words"])
def test_no_step_of_a_program_looks_at_a_number_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CPU_OPS", ())  # which no GPU takes
    monkeypatch.setattr(indices, "_check", lambda *given: None)  # which reads values on a CPU alone
    problem = problem_of(name, noise=NOISE, clip_norm=0.5)
    stack, plan = start(problem)
    executor = StackedExecutor(problem, by_parameter=False)  # as on a GPU
    program = StepProgram(executor, stack, plan.local_steps, plan)
    program.load(plan)
    seen = events(program, [ProfilerActivity.CPU])
    assert "aten::index_copy_" in seen and not ON_THE_HOST & set(seen)


def small_on_gpu(name: str, **values: Any) -> Any:
    from tests.executors import test_executors

    problem = problem_of(name, torch.float32, **values)
    device = torch.device("cuda")
    source = test_executors.source_of(
        test_executors.small_models.sentences() if name == "words" else test_executors.small_models.images(),
        torch.float32,
        device=device,
    )
    numerics = dataclasses.replace(problem.numerics, device=device)
    return dataclasses.replace(problem, module=problem.module.to(device), source=source, numerics=numerics)


def on_gpu(problem: Any) -> tuple[ClientStack, RoundPlan]:
    stack, plan = start(problem)
    moved = ClientStack(stack.params.cuda(), None if stack.momentum is None else stack.momentum.cuda())
    values = (plan.client_ids.cuda(), plan.first_step, plan.learning_rates.cuda(), plan.sample_ids.cuda())
    return moved, RoundPlan(*values)


def on_cpu(stack: ClientStack, result: RoundResult) -> tuple[ClientStack, RoundResult]:
    def back(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.cpu()

    return ClientStack(back(stack.params), back(stack.momentum)), RoundResult(back(result.losses), back(result.correct))


@NEEDS_GPU
@pytest.mark.parametrize("name", ["perceptron", "batchnorm", "groupnorm", "odd", "words"])
def test_captured_rounds_are_those_of_the_cpu(name: str) -> None:
    problem = small_on_gpu(name, noise=NOISE)
    executor = GraphedExecutor(StackedExecutor(problem), CudaGraphs())
    stack, plan = on_gpu(problem)
    result = executor.run_round(stack, plan)
    cpu = problem_of(name, torch.float32, noise=NOISE)
    wanted, wanted_plan = start(cpu)
    expected = StackedExecutor(cpu).run_round(wanted, wanted_plan)
    assert_same(on_cpu(stack, result), (wanted, expected), 1e-4)


@NEEDS_GPU
def test_a_program_takes_the_place_of_one_that_is_gone() -> None:
    problem = small_on_gpu("perceptron")
    graphs = CudaGraphs()
    for _ in range(2):
        executor = GraphedExecutor(StackedExecutor(problem), graphs)
        stack, plan = on_gpu(problem)
        result = executor.run_round(stack, plan)
        executor.run_round(*on_gpu(problem))  # other buffers, of as many clients
    wanted, wanted_plan = start(problem_of("perceptron", torch.float32))
    expected = StackedExecutor(problem_of("perceptron", torch.float32)).run_round(wanted, wanted_plan)
    assert_same(on_cpu(stack, result), (wanted, expected), 1e-4)


@NEEDS_GPU
def test_replays_do_not_wait_for_the_host() -> None:
    problem = small_on_gpu("groupnorm", noise=NOISE)
    executor = GraphedExecutor(StackedExecutor(problem), CudaGraphs())
    stack, plan = on_gpu(problem)
    executor.run_round(stack, plan)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        executor.run_round(stack, plan)
    names = {event.key: event.count for event in seen.key_averages()}
    waits = {name for name in names if "Synchronize" in name or "DtoH" in name}
    assert names.get("cudaGraphLaunch") == plan.local_steps
    assert not (waits - {"cudaDeviceSynchronize"}) and not ON_THE_HOST & set(names)  # the profiler's own, at its end
