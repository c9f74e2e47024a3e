"""Ranks that are gone, stuck or wrong: the others say which, and end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from fastlocal.checkpoint.resharding import read_saved
from fastlocal.cli import main
from tests.helpers.fork_server import ForkServer, wait_until
from tests.helpers.processes import run_each

PATIENCE_S = 60
ENDLESS = (
    *("train", "--dataset", "digits", "--device", "cpu", "--clients", "4", "--batch-size", "2", "--tune-seconds", "0"),
    *("--rounds", "1000000", "--eval-freq1", "1000000", "--save-every", "0"),
)


@pytest.mark.parametrize(
    ("number", "gone", "timeout", "said"),
    [
        (signal.SIGKILL, 1, "60", "rank 1 (process {pid} on {host}) is gone, waited for at"),
        (signal.SIGKILL, 0, "60", "gone"),
        (signal.SIGSTOP, 1, "6", "rank 1 (process {pid} on {host}) did not come within 6 s, waited for at"),
    ],
)
def test_a_rank_that_does_not_come_is_named(
    number: int, gone: int, timeout: str, said: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    ranks = fork_server.start((*ENDLESS, "--timeout", timeout, "--log-pth", tmp_path / "run"), tmp_path / "log", 2)
    try:
        assert wait_until(lambda: "round 3/" in ranks.log.read_text(), PATIENCE_S)
        ranks.send(number, [gone])
        assert wait_until(lambda: not ranks.running([1 - gone]), PATIENCE_S)
    finally:
        ranks.send(signal.SIGKILL)
        statuses, text = ranks.statuses(), ranks.log.read_text()
    assert statuses[1 - gone] == 1, text
    assert "Traceback" not in text
    assert said.format(pid=ranks.pids[gone], host=socket.gethostname()) in text.splitlines()[-1], text


def test_one_rank_s_mistake_ends_them_all(fork_server: ForkServer, tmp_path: Path) -> None:
    right = (*ENDLESS[:-2], "--log-pth", tmp_path / "run")
    wrong = (*right, "--resume-pth", tmp_path / "not there.pt")
    (first, said), (second, silent) = run_each(fork_server, tmp_path / "log{rank}", right, wrong)
    assert (first, second) == (2, 2)
    assert said.splitlines()[-1].startswith("fastlocal: error: rank 1: --resume-pth") and silent == ""
    assert not (tmp_path / "run").exists()


STARTING = """
import sys, torch
from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.distributed.world import connect
try:
    with connect(LaunchInfo.from_environment(), url="env://", timeout=120, device=torch.device("cpu")) as world:
        if world.rank == 1:
            raise KeyboardInterrupt
        world.all_gather_object(None, "the next meeting")
        world.all_gather_object(None, "the one after it")
except KeyboardInterrupt:
    sys.exit(75)
"""


def test_a_signal_to_one_rank_before_its_rounds_stops_all(fork_server: ForkServer, tmp_path: Path) -> None:
    ended = run_each(fork_server, tmp_path / "log{rank}", (), (), program=STARTING)
    assert [status for status, _ in ended] == [75, 75], ended


LEAVING = """
import os, signal, sys, threading, torch
from fastlocal.common.interrupts import interruptible
from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.distributed.world import connect
ranks = LaunchInfo.from_environment()

def leave():
    torch.distributed.TCPStore(ranks.address, ranks.port, None, False).wait(["hello/1"])
    os.kill(os.getpid(), signal.SIGTERM)

try:
    with interruptible(to_the_end=True):
        if ranks.rank == 0:
            threading.Thread(target=leave, daemon=True).start()
        with connect(ranks, url="env://", timeout=120, device=torch.device("cpu")):
            pass
except KeyboardInterrupt:
    sys.exit(75)
"""


def test_a_signal_to_one_rank_while_others_are_waited_for_stops_all(fork_server: ForkServer, tmp_path: Path) -> None:
    """The third never comes, and the one that is told to stop keeps the store."""
    ended = run_each(fork_server, tmp_path / "log{rank}", (), (), program=LEAVING, WORLD_SIZE="3")
    assert [status for status, _ in ended] == [75, 75], ended


SAVING = """
import os, signal, sys, tempfile, threading, time, torch
from pathlib import Path
from fastlocal.common import interrupts
from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.checkpoint.distributed_saver import make_saver
from fastlocal.distributed.world import connect
from tests.checkpoint.test_resharding import state_of

def last_save(world):
    sync = lambda: time.sleep(2 if world.is_rank0 else 0)
    saver = make_saver(Path(sys.argv[1]), every=1, minutes=None, keep=2, sync=sync, world=world)
    try:
        with interrupts.defer_signals(), interrupts.grace_period(30):
            if world.rank == 1:
                for seconds in (0.3, 1.5):
                    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
            saver.finish(state_of(world, comm_round=1))
    finally:
        saver.close()

try:
    with (
        interrupts.interruptible(to_the_end=True),
        connect(LaunchInfo.from_environment(), url="env://", timeout=120, device=torch.device("cpu")) as world,
    ):
        last_save(world)
except KeyboardInterrupt:
    sys.exit(75)
"""


def test_a_second_signal_to_one_rank_in_the_last_save_stops_all(fork_server: ForkServer, tmp_path: Path) -> None:
    """It comes when its part is written and the first rank still writes; the save stands."""
    ended = run_each(fork_server, tmp_path / "log{rank}", (tmp_path,), (tmp_path,), program=SAVING)
    assert [status for status, _ in ended] == [75, 75], ended
    assert read_saved(tmp_path / "resume.pt", 1, 2).metadata["position"]["comm_round"] == 1


STUCK = """
import time, torch
from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.distributed.world import connect
with connect(LaunchInfo.from_environment(), url="env://", timeout=120, device=torch.device("cpu")) as world:
    if world.rank == 1:
        time.sleep(600)
    world.timeout = 1
    with world.watch("the average of round 12"):
        time.sleep(600)  # as a collective does that its own timeout does not end
"""


def test_a_rank_that_hangs_asks_who_answers(fork_server: ForkServer, tmp_path: Path) -> None:
    ranks = fork_server.start_each(tmp_path / "log{rank}", (), (), program=STUCK)
    assert wait_until(lambda: not ranks.running([0]), PATIENCE_S)
    ranks.send(signal.SIGKILL)
    assert ranks.statuses() == [1, -signal.SIGKILL]
    text = ranks.said(0)
    assert f"rank 1 (process {ranks.pids[1]} on" in text, text
    assert text.endswith("waited for at the average of round 12\n"), text


def test_plan_names_who_does_not_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("WORLD_SIZE", 2), ("RANK", 0), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")
    assert main(["plan", "--dataset", "digits", "--device", "cpu", "--timeout", "0.3"]) == 1
    said = "fastlocal: error: rank 1 did not come within 0.3 s, waited for at the start\n"
    assert capsys.readouterr().err == said


def test_fewer_clients_than_ranks(fork_server: ForkServer, tmp_path: Path) -> None:
    words = (*ENDLESS, "--clients", "1", "--log-pth", tmp_path / "run")
    (first, said), (second, silent) = run_each(fork_server, tmp_path / "log{rank}", words, words)
    assert (first, second) == (2, 2)
    assert said.splitlines() == [
        "fastlocal: error: --clients 1: fewer than the 2 processes; give at least as many, or start fewer processes"
    ]
    assert silent == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--timeout", value) for value in ("0", "-1", "nan", "inf")),
        *(("--dist-url", value) for value in ("node0:29500", "tcp://node0", "tcp://:1", "tcp://a:65536", "file:///x")),
    ],
)
def test_how_ranks_meet_is_checked(flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENDLESS, flag, value, "--log-pth", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastlocal: error: {flag}") and not (tmp_path / "run").exists()


def test_what_is_started_again_goes_on_with_its_own_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ENDLESS[:-6], "--log-pth", str(tmp_path), "--rounds"]

    def attempt(number: int) -> None:
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/launcher/attempt_{number}/0/error.json")

    assert main([*words, "1"]) == 0
    attempt(1)
    assert main([*words, "2"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    attempt(0)
    assert main([*words, "1", "--overwrite", "1"]) == 0
    attempt(1)
    assert main([*words, "2", "--overwrite", "1"]) == 0
    assert "going on after 1 rounds" in "".join(capsys.readouterr())
    assert [path.name for path in tmp_path.glob(".*")] == [".launch"]


def test_the_first_process_s_address_can_be_given(fork_server: ForkServer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    words = (*ENDLESS, "--rounds", "1", "--eval-freq1", "1", "--dist-url", url, "--log-pth", tmp_path / "run")
    ended = run_each(fork_server, tmp_path / "log{rank}", words, words, MASTER_ADDR="203.0.113.1")
    assert [status for status, _ in ended] == [0, 0], ended[0][1]
    assert (tmp_path / "run" / "latest.pt").exists()
