"""The captured step of a GPU, its Triton kernels run by Triton's interpreter, is the step of the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastlocal.config.schema import RunConfig
from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import Split
from fastlocal.executors import cuda_graphs
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.cuda_graphs import CudaGraphs, GraphedExecutor
from fastlocal.executors.round_plan import RoundPlan, RoundResult
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.models import build
from fastlocal.models.functional import local_module
from fastlocal.models.modes import training_modes
from fastlocal.params.client_optimizer import AdamW
from fastlocal.params.client_stack import ClientStack
from fastlocal.params.label_noise import LabelNoise
from fastlocal.params.losses import cross_entropy
from fastlocal.params.param_layout import param_layout
from fastlocal.params.precision import Numerics
from fastlocal.runs.fusions import fusions, table
from tests.executors.problems import problem_of
from tests.rehearsal.conftest import Rehearsal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE = {"params": 1e-6, "momentum": 5e-6, "losses": 1e-6}
"""Relative to the norm. Momenta are gradients, and a norm's backward pass takes large terms from each other."""
HARD: dict[str, Any] = {"noise": LabelNoise(p=0.5, classes=4, seed=2), "clip_norm": 0.5, "nesterov": True}
ADAMW: dict[str, Any] = {"momentum": 0.0, "adamw": AdamW(0.9, 0.999, 1e-8), "clip_norm": 0.5}


def on_cuda(problem: LocalProblem) -> LocalProblem:
    """The same problem, its data and its module on the device."""
    source = problem.source
    assert isinstance(source, ResidentSource)
    moved = ResidentSource(
        Split(source.inputs, source.targets), mean=source.mean, std=source.std, augment=source.augment,
        seed=source.seed, device=CUDA, dtype=source.dtype,
    )  # fmt: skip
    numerics = dataclasses.replace(problem.numerics, device=CUDA)
    return dataclasses.replace(problem, module=problem.module.to(CUDA), source=moved, numerics=numerics)


def plan_of(problem: LocalProblem, clients: range, steps: int, batch: int, first_step: int) -> RoundPlan:
    """Clients of any chunking see the same samples and rates."""
    generator = torch.Generator().manual_seed(first_step)
    shape = (steps, 8, batch)
    ids = torch.randint(0, len(problem.source), shape, generator=generator)[:, clients.start : clients.stop]
    rates = (0.02 + 0.01 * torch.arange(steps * len(clients)).view(steps, -1)).to(problem.numerics.dtype)
    device = problem.numerics.device
    return RoundPlan(torch.arange(clients.start, clients.stop).to(device), first_step, rates.to(device), ids.to(device))


def rounds(
    problem: LocalProblem, executor: Any, chunks: list[range], steps: int, batch: int, count: int = 2
) -> tuple[Any, ...]:
    """Parameters, momenta, losses and right predictions of some rounds in which clients start apart from each other."""
    generator = torch.Generator().manual_seed(1)
    row = problem.layout.flatten({name: value.to(CPU) for name, value in problem.module.named_parameters()})
    clients = chunks[-1].stop
    noise = [torch.randn(clients, row.numel(), generator=generator).to(row.dtype) for _ in range(2)]
    everyone = problem.stack(clients)
    everyone.params.copy_(row + 0.02 * noise[0])
    assert everyone.momentum is not None
    everyone.momentum.copy_(0.02 * noise[1])
    if everyone.square is not None and everyone.steps is not None:
        everyone.square.copy_(noise[1] ** 2)
        everyone.steps.copy_(torch.arange(clients))
    results: list[RoundResult] = []
    for first_step in range(11, 11 + count):
        memory = problem.stack(len(chunks[0]))
        for chunk in chunks:  # each in the same rows, as the loop has them
            own, stack = everyone.part(slice(chunk.start, chunk.stop)), memory.part(slice(len(chunk)))
            for rows, values in zip(stack.buffers, own.buffers, strict=True):
                rows.copy_(values)
            results.append(executor.run_round(stack, plan_of(problem, chunk, steps, batch, first_step)))
            for rows, values in zip(stack.buffers, own.buffers, strict=True):
                values.copy_(rows)
    correct = sum(result.correct.sum(dim=0).to(CPU) for result in results)
    losses = torch.cat([result.losses.flatten().to(CPU) for result in results])
    return everyone.params.to(CPU), everyone.momentum.to(CPU), losses, correct


def check(
    make: Callable[[torch.dtype, torch.dtype | None], LocalProblem], low: torch.dtype | None, rehearsed: Rehearsal,
    monkeypatch: pytest.MonkeyPatch, chunks: list[range], batch: int = 3, count: int = 2,
) -> None:  # fmt: skip
    """Compare a program that was captured and replayed through the interpreter with the CPU's steps.

    It may be off by TOLERANCE, or twice what the CPU is off itself in the same precision, from the steps in float64.
    """
    monkeypatch.setattr(cuda_graphs, "WARM_UPS", 1)
    exact, plain = (
        rounds(problem, StackedExecutor(problem), chunks, 1, batch, count)
        for problem in (make(torch.float64, None), make(torch.float32, low))
    )
    with rehearsed(interpret=True) as device:
        problem = on_cuda(make(torch.float32, low))
        executor = GraphedExecutor(StackedExecutor(problem, conv_strategy="triton"), CudaGraphs())
        found = rounds(problem, executor, chunks, 1, batch, count)
        assert device.count("graph") == count * len(chunks)
        launched = {name for kind, name in device.events if kind == "launch"}
    steps = {"_client_sgd"} if problem.adamw is None else {"_client_adamw_factors", "_client_adamw"}
    assert {*steps, "_label_noise_loss"} <= launched
    for what, wanted, ours, theirs in zip(TOLERANCE, exact, found, plain, strict=False):
        size = wanted.norm()
        error, own = ((value - wanted).norm() / size for value in (ours, theirs))
        assert error <= max(TOLERANCE[what], 2 * own), f"{what}: {error:.2g}, and the CPU {own:.2g}"
    if low is None:
        assert torch.equal(found[3], exact[3])


@pytest.mark.parametrize(
    ("name", "low", "values", "chunks"),
    [
        pytest.param("perceptron", None, HARD, [range(0, 3), range(3, 5)], id="perceptron, a smaller last chunk"),
        pytest.param("batchnorm", None, HARD, [range(0, 2)], id="batchnorm, hard"),
        pytest.param("perceptron", None, ADAMW, [range(0, 3), range(3, 5)], id="perceptron, adamw"),
        pytest.param("groupnorm", torch.bfloat16, {"nesterov": True}, [range(0, 2)], id="groupnorm, bf16"),
        pytest.param(
            "groupnorm", None, {}, [range(0, 2), range(2, 4), range(4, 5)], id="groupnorm", marks=pytest.mark.slow
        ),
    ],
)
def test_a_replayed_step_is_that_of_the_cpu(
    name: str, low: torch.dtype | None, values: dict[str, Any], chunks: list[range],
    rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def make(dtype: torch.dtype, low: torch.dtype | None) -> LocalProblem:
        return problem_of(name, dtype, low, **values)

    check(make, low, rehearsed, monkeypatch, chunks)


@pytest.mark.parametrize("values", [HARD, ADAMW], ids=["sgd", "adamw"])
def test_unequal_clients_on_a_few_numbers_of_rows(
    values: dict[str, Any], rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured steps with masks, and plain steps of short batches, are the CPU's; rows that are done keep every bit."""
    monkeypatch.setattr(cuda_graphs, "WARM_UPS", 1)
    sizes = torch.tensor([[3, 3, 3, 3], [3, 3, 3, 0], [3, 2, 0, 0]])

    def take(problem: LocalProblem, executor: Any) -> tuple[ClientStack, RoundResult]:
        stack = problem.stack(4)
        torch.manual_seed(3)
        stack.params.add_(0.02 * torch.randn(stack.params.shape, dtype=torch.float64).to(stack.params))
        plan = dataclasses.replace(plan_of(problem, range(0, 4), 3, 3, 11), sizes=sizes)
        return stack, executor.run_round(stack, plan)

    def make(dtype: torch.dtype) -> LocalProblem:
        return problem_of("perceptron", dtype, None, **values)

    wanted, theirs = take(make(torch.float64), StackedExecutor(make(torch.float64)))
    with rehearsed(interpret=True) as device:
        problem = on_cuda(make(torch.float32))
        executor = GraphedExecutor(StackedExecutor(problem, conv_strategy="triton"), CudaGraphs())
        stack, ours = take(problem, executor)
        assert device.count("graph") == 3 and sorted(executor._programs) == [1, 4]
        for found, expected in ((stack.params, wanted.params), (ours.losses, theirs.losses)):
            assert ((found.to(CPU) - expected).norm() / expected.norm()) < TOLERANCE["params"]
        if stack.steps is not None:
            assert stack.steps.tolist() == [3, 3, 2, 1]
        assert ours.correct is not None and torch.equal(ours.correct.to(CPU), theirs.correct)
        assert not ours.losses.to(CPU)[sizes == 0].any()


class Shared(nn.Module):
    """Filters that are used twice, a shortcut around them that changes afterwards, and a part of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm, self.linear = nn.BatchNorm2d(16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        shortcut = x / 2
        x = nn.functional.hardswish(self.norm(self.twice(x)), inplace=True)
        x = nn.functional.relu(self.norm(self.twice(x)) + shortcut)
        x = x + shortcut.sigmoid_()
        return nn.functional.linear(x.mean(dim=(2, 3)), self.linear.weight[:4], self.linear.bias[:4])


def test_filters_that_are_used_twice(rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(dtype: torch.dtype, low: torch.dtype | None) -> LocalProblem:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = Shared().to(dtype)
        return problem_of("batchnorm", dtype, low, module=module)

    check(make, None, rehearsed, monkeypatch, [range(0, 2)], batch=2, count=1)


MODELS = {
    "mlp": ("mlp", 8, None, HARD),
    "cnn": ("cnn", 8, None, HARD),
    "resnet20_gn": ("resnet20_gn", 8, None, HARD),
    "resnet20": ("resnet20", 8, None, HARD),
    "resnet20_gn, bf16": ("resnet20_gn", 8, torch.bfloat16, {}),
    "vgg, narrow": ("vgg", 8, None, {}),
}


def narrow_vgg() -> nn.Module:
    """Convolutions, SiLU and pooling as in VGG-11, whose 512 channels take the interpreter ten minutes."""
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    pooled = (nn.SiLU(), nn.MaxPool2d(2))
    return nn.Sequential(first, *pooled, second, *pooled, nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS)
def test_the_models_of_the_benches(case: str, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    name, side, low, values = MODELS[case]

    def make(dtype: torch.dtype, low: torch.dtype | None) -> LocalProblem:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = narrow_vgg() if name == "vgg" else build(name, in_channels=3, classes=4, image_size=(side, side))
            module = module.to(dtype)
        pixels = torch.randint(
            0, 256, (20, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
        )
        given = {
            "loss": cross_entropy,
            "noise": None,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.03,
            **values,
        }
        source = ResidentSource(
            Split(pixels, torch.arange(20) % 4), mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25), augment=True, seed=9,
            device=CPU, dtype=dtype,
        )  # fmt: skip
        layout = param_layout(module, group_weight=True)
        numerics = Numerics(CPU, dtype, low)
        return LocalProblem(
            module=local_module(module, training_modes(module)),
            layout=layout,
            source=source,
            topk=(1, 2),
            numerics=numerics,
            **given,
        )

    check(make, low, rehearsed, monkeypatch, [range(0, 2)], batch=2, count=1)


def test_the_table_of_fusions(rehearsed: Rehearsal) -> None:
    """The table lists the fusions of the model on a GPU."""
    config = RunConfig().with_values(executor="stacked", conv_strategy="triton")
    with rehearsed(interpret=True):
        problem = on_cuda(problem_of("batchnorm", torch.float32))
        found = fusions(config, problem)
        assert fusions(config.with_values(executor="looped"), problem) == {}
    assert found == {
        "convolution + BatchNorm + silu": 1,
        "convolution + BatchNorm + relu": 1,
    }
    lines = table({"GroupNorm + relu": 2, **found}).splitlines()
    assert [line.split()[-1] for line in lines] == ["step", "2", "1", "1"] and lines[1].startswith("GroupNorm + relu ")


def test_a_replay_reads_samples_where_they_are(rehearsed: Rehearsal) -> None:
    """The launch of a kernel that is given a tensor on the host is refused, as a GPU would."""
    with rehearsed(interpret=True):
        problem = on_cuda(problem_of("perceptron", torch.float32))
        with pytest.raises(ValueError, match="images|sample_ids"):
            problem.source.batch(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0)  # type: ignore[attr-defined]
