"""Steps of worker threads: the same on each of them, without the interpreter wherever they can be traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.scripted.trace import ScriptedSteps, script
from fastlocal.executors.threaded import ThreadedExecutor
from tests.executors.problems import (
    BATCH,
    CLIENTS,
    STEPS,
    assert_same,
    idle_layout,
    in_plain_torch,
    problem_of,
    run,
    start,
)
from tests.helpers import small_models
from tests.helpers.command_line import metrics, train_words, write_npz
from tests.helpers.command_line import run as run_command


class ReadsValues(nn.Module):
    """Cannot be traced, as a value decides which way it goes; tells every thread that calls it."""

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 4)
        self.told = (told,)  # in a tuple, which copies of the module share

    def forward(self, x: Tensor) -> Tensor:
        self.told[0]()
        x = self.linear(x.flatten(1))
        return x if float(x.detach().sum()) > 0 else 2 * x

    def __deepcopy__(self, memo: dict[int, object]) -> ReadsValues:
        other = ReadsValues(self.told[0])
        other.load_state_dict(self.state_dict())
        return other.to(self.linear.weight.dtype)


def problem_with(module: nn.Module, dtype: torch.dtype = torch.float32, **values: Any) -> LocalProblem:
    module, problem = module.to(dtype).train(), problem_of("perceptron", dtype)
    layout = idle_layout(module, problem.source.read_range(0, 4).inputs, group_weight=False)
    return dataclasses.replace(problem, **{"module": module, "layout": layout, **values})


@pytest.mark.parametrize("name", ["perceptron", "batchnorm", "groupnorm", "odd", "words"])
def test_every_small_model_runs_without_the_interpreter(name: str) -> None:
    problem = problem_of(name)
    _, plan = start(problem)
    batch = problem.source.read_range(0, BATCH)
    steps = script(problem, batch.inputs, batch.targets, channels_last=False)
    executor = ThreadedExecutor(problem, workers=1)
    assert executor._difference(steps, batch.inputs, batch.targets) is None
    assert all(isinstance(own, ScriptedSteps) for own in executor._steps_for(plan))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "values",
    [{}, {"weight_decay": 0.0}, {"weight_decay": 0.0, "nesterov": True}, {"clip_norm": 0.3}, {"momentum": 0.0}],
    ids=str,
)
def test_large_weights_and_products_added_in_place(values: dict[str, float], dtype: torch.dtype) -> None:
    """16 samples of 3000 values: forward turned around, gradients added where they go, in C++ where they are floats."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(90, 3000), nn.Tanh(), nn.Linear(3000, 100), nn.Linear(100, 4))
    problem = problem_with(module, dtype, **values)
    stack, plan = start(problem, clients=2)
    row = problem.layout.flatten(dict(problem.module.named_parameters()))
    stack.params.lerp_(row, 0.9)  # sums of 3000 products with noise of 0.1 amplify the rounding of the first step
    plan = dataclasses.replace(plan, sample_ids=plan.sample_ids.repeat(1, 1, 4)[..., :16])
    results = []
    for executor in (LoopedExecutor(problem), ThreadedExecutor(problem, workers=2)):
        copies = dataclasses.replace(
            stack, params=stack.params.clone(), momentum=None if stack.momentum is None else stack.momentum.clone()
        )
        results.append((copies, executor.run_round(copies, plan)))
    assert_same(results[1], results[0], 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("name", ["batchnorm", "groupnorm", "odd", "words"])
def test_the_memory_layout_changes_nothing_but_rounding(name: str) -> None:
    assert_same_in_channels_last(problem_of(name))


def assert_same_in_channels_last(problem: LocalProblem) -> None:
    stack, plan = start(problem)
    executor = ThreadedExecutor(problem, workers=2, channels_last=True)
    result = executor.run_round(stack, plan)
    assert all(isinstance(own, ScriptedSteps) for own in executor._steps_for(plan))
    assert_same((stack, result), in_plain_torch(problem), 1e-11)


class Shortcut(nn.Module):
    """A block whose shortcut halves the image and adds channels, as in ResNets without convolutions there."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.block = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.before(x))
        x = nn.functional.silu(self.block(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        return self.linear(x.mean(dim=(2, 3)))


class Layouts(TorchDispatchMode):
    """The operations that read images of two memory layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        images = [value for value in args if isinstance(value, Tensor) and value.dim() == 4 and 0 not in value.stride()]
        last = {value.is_contiguous(memory_format=torch.channels_last) for value in images}
        if len(last) > 1 and len(images[0]) == BATCH:
            self.mixed.append(str(func))
        return func(*args, **(kwargs or {}))


def test_channels_last_steps_stay_in_that_layout() -> None:
    problem = problem_with(Shortcut(), torch.float64)
    batch = problem.source.read_range(0, BATCH)
    steps = script(problem, batch.inputs, batch.targets, channels_last=True)
    row = problem.layout.flatten(dict(problem.module.named_parameters()))
    with Layouts() as layouts:
        steps.check_step(row.clone(), torch.zeros_like(row), batch.inputs, batch.targets)
    assert layouts.mixed == []
    assert_same_in_channels_last(problem)


def test_channels_last_images_become_rows() -> None:
    images = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    rows = nn.Sequential(*images, nn.Flatten(), nn.Linear(4 * 3 * 2, 4))
    assert_same_in_channels_last(problem_with(rows, torch.float64))


def test_momentum_without_decay_is_that_of_torch() -> None:
    problem = problem_of("odd", weight_decay=0.0)
    assert_same(run("threaded", problem), in_plain_torch(problem), 1e-11)


def test_a_weight_that_multiplies_another_weight() -> None:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(90, 6)), nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ (self.a @ self.b)

    for momentum in (0.0, 0.9):
        problem = problem_with(Factors(), torch.float64, weight_decay=0.0, momentum=momentum)
        assert_same(run("threaded", problem), in_plain_torch(problem), 1e-11)


@pytest.mark.parametrize("module", [ReadsValues, small_models.perceptron])
def test_the_number_of_workers_changes_no_bit(module: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem = problem_with(module())
    results = []
    for workers in (1, 2, 7):
        stack, plan = start(problem)
        result = ThreadedExecutor(problem, workers=workers).run_round(stack, plan)
        results.append((stack.params, stack.momentum, result.losses, result.correct))
    assert all(torch.equal(a, b) for one in results[1:] for a, b in zip(one, results[0], strict=True))


def test_what_cannot_be_traced_takes_the_looped_executors_steps() -> None:
    problem = problem_with(ReadsValues())
    (stack, result), (wanted_stack, wanted) = (run(kind, problem) for kind in ("threaded", "looped"))
    assert torch.equal(stack.params, wanted_stack.params) and torch.equal(result.losses, wanted.losses)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoints(use_reentrant: bool) -> None:
    """What computes activations again in the backward pass takes a client's parameters then, not the first ones."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(90, 20), nn.Linear(20, 20), nn.Linear(20, 4)

        def hidden(self, x: Tensor) -> Tensor:
            return torch.tanh(self.second(x))

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = checkpoint(self.hidden, self.first(x.flatten(1)), use_reentrant=use_reentrant)
            return self.last(hidden)

    problem = problem_with(Checkpointed(), torch.float64)
    assert_same(run("threaded", problem), in_plain_torch(problem), 1e-11)


def test_a_module_that_trains_otherwise_than_it_was_traced_is_not_traced() -> None:
    class Alternates(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(90, 4)

        def forward(self, x: Tensor) -> Tensor:
            Alternates.calls += 1
            return self.linear(x.flatten(1)) * (1 + Alternates.calls % 2)

    executor = ThreadedExecutor(problem_with(Alternates()), workers=1)
    with pytest.raises(UsageError, match="changes the attribute calls"):
        executor.run_round(*start(executor.problem))
    assert [type(own) for own in executor._steps_for(start(executor.problem)[1])] == [LoopedExecutor]


class Shaking(nn.Linear):
    """Draws from NumPy's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1) * (1 + 0.1 * np.random.random()))


def test_modules_that_draw_random_numbers_are_refused(tmp_path: Path) -> None:
    data = small_models.images()
    halves = {
        "train": (data.train.inputs.float(), data.train.targets),
        "test": (data.test.inputs.float(), data.test.targets),
    }
    with pytest.raises(ValueError, match=r'executor="threaded": .*NumPy.*executor="looped"'):
        fastlocal.train(
            Shaking(90, 4), **halves, clients=2, batch_size=8, directory=tmp_path / "run", executor="threaded"
        )
    assert not (tmp_path / "run").exists()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_npz(tmp_path / "command_line.npz")
    rows = []
    for words in ("looped", "threaded", "threaded --workers 1 --chunk 1", "threaded --channels-last"):
        directory = tmp_path / words
        flags = ["--model", "cnn", "--momentum", "0.9", "--precision", "fp64", "--executor", *words.split()]
        assert run_command(capsys, *train_words(data, directory), *flags).status == 0
        rows.append(metrics(directory))
    for row in rows[1:]:
        assert row == [pytest.approx(wanted, rel=1e-9) for wanted in rows[0]]


def test_uneven_batches_of_one_executor() -> None:
    """A batch size of its own is traced on its own."""
    problem = problem_of("groupnorm")
    executor = ThreadedExecutor(problem, workers=2)
    for batch in (BATCH, 2):
        stack, plan = start(problem)
        plan = dataclasses.replace(plan, sample_ids=plan.sample_ids[..., :batch])
        other, _ = start(problem)
        got = stack, executor.run_round(stack, plan)
        assert_same(got, (other, LoopedExecutor(problem).run_round(other, plan)), 1e-11)


@pytest.mark.parametrize("batch", [5, 20])
def test_short_batches_of_small_ones_are_traced_too(batch: int) -> None:
    """Each size as it comes; those of large batches take plain steps. Both are the steps of the looped executor."""
    problem = problem_of("perceptron")
    stack, plan = start(problem)
    sizes = torch.full((STEPS, CLIENTS), batch)
    sizes[-1], sizes[-2, 3] = torch.tensor([3, batch, 1, 0]), 3
    ids = plan.sample_ids.repeat(1, 1, 4)[..., :batch]
    results = []
    for executor in (LoopedExecutor(problem), ThreadedExecutor(problem, workers=2)):
        copies = dataclasses.replace(stack, params=stack.params.clone(), momentum=stack.momentum.clone())
        for last in (None, sizes):  # the first round has no short batches
            part = dataclasses.replace(plan, sample_ids=ids, sizes=last)
            result = executor.run_round(copies, part)
        results.append((copies, result))
    assert_same(results[1], results[0], 1e-11)
    steps = executor._steps_for(part)[0]
    assert isinstance(steps, ScriptedSteps) and set(steps.short) == ({1, 3} if batch == 5 else set())
