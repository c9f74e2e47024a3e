"""Several ranks with a GPU each: which GPU is whose, averaging on a stream, and a collective that does not end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from fastlocal.common.errors import RankMissing, UsageError
from fastlocal.distributed import watchdog
from fastlocal.distributed import world as worlds
from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.distributed.store import Peer
from fastlocal.distributed.world import World
from fastlocal.runs.resolve import refuse_shared_gpu, resolve_device
from fastlocal.training.timers import EVENTS, Timers
from tests.helpers import command_line
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import Ends, run_each
from tests.rehearsal import cuda_api
from tests.rehearsal.conftest import Rehearsal

CUDA = torch.device("cuda", 0)


def test_one_visible_gpu_is_the_task_s_own(rehearsed: Rehearsal) -> None:
    """As SLURM shows each task of a node its own GPU, with --gpus-per-task=1."""
    ranks = LaunchInfo(rank=3, size=4, local_rank=3, local_size=4)
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
    tmp_path: Path, rehearsed: Rehearsal, fork_server: ForkServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the buckets' stream, with gloo in the place of NCCL."""
    data = command_line.write_npz(tmp_path / "data.npz")
    hooks = rehearsed.args[0]  # type: ignore[attr-defined]

    def words(device: str) -> list[object]:
        given = ["train", "--dataset", "npz", "--data-pth", data, "--log-pth", tmp_path / device, "--device", device]
        sizes = ["--batch-size", 4, "--total-batch-size", 20, "--epochs", 4, "--momentum", 0.9, "--bucket-mb", 0.01]
        return [*given, *sizes, "--executor", "stacked", "--tune-seconds", 0, "--timeout", 50]

    def on_two(*given: object) -> Ends:
        return run_each(fork_server, tmp_path / "log{rank}", given, given, program=RANK, TRITON_INTERPRET="1")

    for status, said in on_two(hooks, "-", *words("cuda")):
        assert status == 0 and "cpu:gloo,cuda:nccl, 110 s, 0" in said, said
        assert int(said.split(" events are left")[0].split()[-1]) <= 4, said
    for status, said in on_two(hooks, "fails", *words("cuda"), "--log-pth", tmp_path / "failing"):
        assert status == 1 and "the average of round 1 failed on every rank: NCCL error" in said, said
        assert "Traceback" not in said
    assert command_line.run(capsys, *words("cpu")).status == 0
    for row, other in zip(command_line.metrics(tmp_path / "cuda"), command_line.metrics(tmp_path / "cpu"), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@dataclasses.dataclass
class Told:
    """A world whose ranks say these UUIDs."""

    uuids: list[str | None]

    @property
    def size(self) -> int:
        return len(self.uuids)

    def all_gather_object(self, value: Any, what: str) -> list[Any]:
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
    monkeypatch.setattr(worlds, "LOOK_S", 0.1)
    for name in ("FAREWELL_S", "REPORT_S"):
        monkeypatch.setattr(watchdog, name, 0.1)
    own = Peer.this()
    peer = dataclasses.replace(own, started="at another time") if other == "is gone" else own
    world = World(LaunchInfo(rank=0, size=2, local_rank=0, local_size=2), HashStore(), [own, peer], [0, 0])
    world.timeout = 0.5
    with rehearsed():
        monkeypatch.setattr(torch.cuda, "Event", event)
        with pytest.raises(RankMissing, match=r"rank 1 \(process \d+ on "):
            with world.averaging("the average of round 3"):
                world.await_device(CUDA)


def test_the_share_of_averaging_is_the_device_s_own_time_and_keeps_no_events(rehearsed: Rehearsal) -> None:
    with rehearsed():
        timers = Timers()
        for _ in range(3 * EVENTS):
            with timers.time_average(CUDA):
                pass
            assert len(timers._events) < EVENTS
        world = World(LaunchInfo(rank=0, size=2), None, [], [0, 0])
        timers.add_steps(1.0, 0.0)
        (line,) = timers.pop_messages(world)
    assert "16.1% averaging" in line  # a millisecond each, beside a second of steps
