"""What a GPU does wrong: memory that runs out, steps that cannot be captured, errors, and GPUs of other ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from fastlocal.aggregation import averager as averagers
from fastlocal.aggregation.averager import make_averager
from fastlocal.executors.cuda_graphs import CudaGraphs, GraphedExecutor, StepProgram
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.runs.memory_plan import can_replay
from tests.executors.problems import problem_of
from tests.rehearsal import cuda_api
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.test_step_programs import on_cuda, rounds
from tests.runs.test_memory_plan import NEEDS

CUDA = torch.device("cuda", 0)


def test_a_capture_that_runs_out_of_memory_is_begun_anew_with_fewer_clients(
    rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_api.graph, "leaked", 0)
    plain = problem_of("perceptron", torch.float32)
    wanted = rounds(plain, StackedExecutor(plain), [range(0, 4)], 2, 3)
    with rehearsed() as device:
        raised: list[str] = []

        def launch(name: str) -> None:
            if name == "_client_sgd" and device.recorded is not None and not raised:
                raised.append(name)
                raise torch.OutOfMemoryError("CUDA out of memory")

        device.on_launch = launch
        stacked = StackedExecutor(on_cuda(problem_of("perceptron", torch.float32)))
        found = rounds(stacked.problem, GraphedExecutor(stacked, CudaGraphs()), [range(0, 4)], 2, 3)
        assert device.count("graph") == 4
    assert cuda_api.graph.leaked == 1 and raised
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Constant(nn.Module):
    """Its forward pass copies a number from the host, which no capture takes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * torch.tensor([1.0, 2.0, 0.5], device=x.device)


def train_constant(folder: Path, device: str, **values: Any) -> Any:
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    torch.manual_seed(1)
    return fastlocal.train(
        Constant(), data, data, clients=5, batch_size=2, rounds=2, directory=folder, device=device,
        executor="stacked", tune_seconds=0.0, **values,
    )  # fmt: skip


def test_a_step_that_cannot_be_captured_is_launched_and_said(
    tmp_path: Path, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_api.graph, "leaked", 0)
    tried: list[int] = []
    capture = CudaGraphs.__call__

    def watched(self: CudaGraphs, program: StepProgram) -> Any:
        tried.append(len(program.stack.params))
        return capture(self, program)

    monkeypatch.setattr(CudaGraphs, "__call__", watched)
    with rehearsed() as device:
        ours = train_constant(tmp_path / "cuda", "cuda")
        model = {name: value.cpu() for name, value in ours.model.state_dict().items()}
        assert device.count("graph") == 0
    printed = capsys.readouterr()
    assert "kernel after the other: a local step cannot be captured" in printed.out + printed.err
    assert cuda_api.graph.leaked == 1 and tried == [2], "with few clients, and not again with all five"
    theirs = train_constant(tmp_path / "cpu", "cpu").model.state_dict()
    for name, value in model.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def test_an_error_of_the_device_is_not_taken_for_a_step_that_cannot_be_captured(
    tmp_path: Path, rehearsed: Rehearsal
) -> None:
    data = torch.randn(24, 4), torch.arange(24) % 3
    with rehearsed() as device:

        def launch(name: str) -> None:
            if device.recorded is not None:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        device.on_launch = launch
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            fastlocal.train(
                nn.Linear(4, 3), data, data, clients=2, batch_size=2, rounds=1, directory=tmp_path / "run",
                device="cuda", executor="stacked", tune_seconds=0.0,
            )  # fmt: skip


def test_an_evaluation_has_no_memory_of_a_graph(rehearsed: Rehearsal) -> None:
    replayed = dataclasses.replace(NEEDS, replayed=True)
    assert replayed.total(64) > NEEDS.total(64)
    with rehearsed():
        assert can_replay(on_cuda(problem_of("perceptron", torch.float32)))
    assert not can_replay(problem_of("perceptron"))


def test_sums_of_a_fixed_order_take_bounded_memory_on_a_device(
    rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, n_params = 16, 10_001
    params = torch.randn(clients, n_params, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(averagers, "IN_MEMORY", 2**16)

    def mean(params: Tensor) -> Tensor:
        averager = make_averager(
            torch.zeros_like(params[0]), clients, nodes=[0], rank=0, bucket_mb=25, reduce_order="fixed"
        )
        averager.accumulate(params, last=True)
        averager.start(torch.zeros_like(params[0]), clients)
        return averager.finish().cpu()

    with rehearsed() as device:
        given = params.to(CUDA)
        sizes: list[int] = []
        device.on_allocation = sizes.append
        ours = mean(given)
    assert torch.equal(ours, mean(params))
    assert max(sizes) <= 3 * n_params * 8, "bytes: the sums themselves, and 64 KiB of a chunk's copies"


def test_a_script_that_set_torch_s_newer_switches_trains(tmp_path: Path) -> None:
    backends: Any = torch.backends
    before = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    backends.cudnn.conv.fp32_precision = "tf32" if before[0] != "tf32" else "ieee"
    mixed = backends.cudnn.conv.fp32_precision
    try:
        with pytest.raises(RuntimeError):
            _ = backends.cudnn.allow_tf32
        fastlocal.train(
            nn.Linear(4, 3), *[(torch.randn(8, 4), torch.arange(8) % 3)] * 2, clients=2, batch_size=2, rounds=1,
            directory=tmp_path / "api", device="cpu", executor="looped",
        )  # fmt: skip
        assert (backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision) == (mixed, before[1])
    finally:
        backends.cudnn.allow_tf32 = before[0] == "tf32"
