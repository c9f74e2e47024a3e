"""What a GPU does wrong: memory that runs out, steps that cannot be captured, errors, and GPUs of other ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

import fastlocal
from fastlocal import world as worlds
from fastlocal.averaging import averager as averagers
from fastlocal.averaging.averager import make_averager
from fastlocal.channel import Peer
from fastlocal.errors import RankMissing, UsageError
from fastlocal.executors.graphed import CudaGraphs, GraphedExecutor, StepProgram
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.memory import can_replay
from fastlocal.ranks import Ranks
from fastlocal.resolve import refuse_shared_gpu, resolve_device
from fastlocal.waiting import EVENTS, Waiting
from fastlocal.world import World
from tests import many, tiny
from tests.executors.test_executors import problem_of
from tests.rehearsal import cuda_api
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.test_step_programs import on_cuda, rounds
from tests.test_memory import NEEDS

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


def test_one_visible_gpu_is_the_task_s_own(rehearsed: Rehearsal) -> None:
    """As SLURM shows each task of a node its own GPU, with --gpus-per-task=1."""
    ranks = Ranks(rank=3, size=4, local_rank=3, local_size=4)
    with rehearsed():
        assert resolve_device("cuda", ranks) == resolve_device(None, ranks) == CUDA
    with rehearsed(gpus=4):
        assert resolve_device("cuda", ranks) == torch.device("cuda", 3)
    with rehearsed(gpus=2):
        for name in ("cuda", "cuda:2"):
            with pytest.raises(UsageError, match="there are 2"):
                resolve_device(name, ranks)


RANK = """
import os, sys
from pathlib import Path
from unittest.mock import patch
import torch, torch.distributed as dist
from fastlocal.cli import main
from tests.rehearsal.cuda_api import Event, rehearsal

initialise = dist.init_process_group

def through_gloo(backend, **given):
    handling = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    print(f"{backend}, {given['timeout'].total_seconds():g} s, {handling}", file=sys.stderr)
    return initialise(backend.replace("nccl", "gloo"), **given)

class Failed(Event):
    def query(self):
        raise torch.AcceleratorError("NCCL error: unhandled system error")

hooks, fails, *words = sys.argv[1:]
with rehearsal(Path(hooks), uuid=os.environ["RANK"]), patch.object(dist, "init_process_group", through_gloo):
    if fails == "fails":
        torch.cuda.Event = Failed
    status = main(words)
print(f"{len(Event.alive)} events are left", file=sys.stderr)
sys.exit(status)
"""


def test_ranks_with_a_gpu_each_train_what_one_does(
    tmp_path: Path, rehearsed: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the buckets' stream, with gloo in the place of NCCL."""
    data = tiny.write_npz(tmp_path / "data.npz")
    hooks = rehearsed.args[0]  # type: ignore[attr-defined]

    def words(device: str) -> list[object]:
        given = ["train", "--dataset", "npz", "--data-pth", data, "--log-pth", tmp_path / device, "--device", device]
        sizes = ["--batch-size", 4, "--total-batch-size", 20, "--epochs", 4, "--momentum", 0.9, "--bucket-mb", 0.01]
        return [*given, *sizes, "--executor", "stacked", "--tune-seconds", 0, "--timeout", 50]

    interpreted = {"TRITON_INTERPRET": "1"}
    for status, said in many.ends(many.start(*[[hooks, "-", *words("cuda")]] * 2, program=("-c", RANK), **interpreted)):
        assert status == 0 and "cpu:gloo,cuda:nccl, 110 s, 0" in said, said
        assert int(said.split(" events are left")[0].split()[-1]) <= 4, said
    failing = [hooks, "fails", *words("cuda"), "--log-pth", tmp_path / "failing"]
    for status, said in many.ends(many.start(failing, failing, program=("-c", RANK), **interpreted)):
        assert status == 1 and "the average of round 1 failed on every rank: NCCL error" in said, said
        assert "Traceback" not in said
    assert tiny.run(capsys, *words("cpu")).status == 0
    for row, other in zip(tiny.metrics(tmp_path / "cuda"), tiny.metrics(tmp_path / "cpu"), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@dataclasses.dataclass
class Told:
    """A world whose ranks say these UUIDs."""

    uuids: list[str | None]

    @property
    def size(self) -> int:
        return len(self.uuids)

    def exchange(self, value: Any, what: str) -> list[Any]:
        assert value in self.uuids
        return self.uuids


def test_ranks_that_would_share_a_gpu_are_refused(rehearsed: Rehearsal) -> None:
    def ask(*uuids: str | None) -> None:
        refuse_shared_gpu(CUDA, Told([*uuids]))  # type: ignore[arg-type]

    with rehearsed(uuid="b"):
        ask("b")
        ask("a", "b", "c")
        with pytest.raises(UsageError, match="--device cuda: ranks 0 and 2 would share a GPU"):
            ask("b", "a", "b")
        with pytest.raises(UsageError, match="all processes take GPUs or none .rank 0: cuda, rank 1: cpu"):
            ask("b", None)


class Never(cuda_api.Event):
    """An event that does not come: a collective waits for a rank that is gone."""

    def query(self) -> bool:
        return False


class Failed(cuda_api.Event):
    """Where an error of NCCL shows."""

    def query(self) -> bool:
        raise torch.AcceleratorError("NCCL error: unhandled system error")


@pytest.mark.parametrize("event", [Never, Failed])
@pytest.mark.parametrize("other", ["is gone", "does not answer"])
def test_a_rank_that_a_collective_waits_for_is_named(
    event: type[cuda_api.Event], other: str, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FAREWELL_S", "SAYING_S", "LOOK_S"):
        monkeypatch.setattr(worlds, name, 0.1)
    own = Peer.this()
    peer = dataclasses.replace(own, started="at another time") if other == "is gone" else own
    world = World(Ranks(rank=0, size=2, local_rank=0, local_size=2), HashStore(), [own, peer], [0, 0])
    world.timeout = 0.5
    with rehearsed():
        monkeypatch.setattr(torch.cuda, "Event", event)
        with pytest.raises(RankMissing, match=r"rank 1 \(process \d+ on "):
            with world.averaging("the average of round 3"):
                world.await_device(CUDA)


def test_the_share_of_averaging_is_the_device_s_own_time_and_keeps_no_events(rehearsed: Rehearsal) -> None:
    with rehearsed():
        waiting = Waiting()
        for _ in range(3 * EVENTS):
            with waiting.averaging(CUDA):
                pass
            assert len(waiting._events) < EVENTS
        world = World(Ranks(rank=0, size=2), None, [], [0, 0])
        waiting.trained(1.0, 0.0)
        (line,) = waiting.take(world)
    assert "16.1% averaging" in line  # a millisecond each, beside a second of steps


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
        averager.add(params, last=True)
        averager.launch(torch.zeros_like(params[0]))
        return averager.wait().cpu()

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
