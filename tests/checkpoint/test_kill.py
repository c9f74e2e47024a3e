"""Runs in processes of their own that are killed, stopped, or find the disk full, and go on."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from fastlocal.checkpoint.state_file import read_metadata
from tests.crash.crashes import CASES, Outcome, crash_runs
from tests.helpers.command_line import run, train_words
from tests.helpers.fork_server import ForkedRun, ForkServer, wait_until
from tests.helpers.run_files import difference, run_files

PATIENCE_S = 120
ON_DISK = list(CASES).index("mlp, kept state on disk")


@pytest.mark.parametrize(("ranks", "kills", "first"), [(1, 3, 1), (1, 3, ON_DISK), (2, 2, ON_DISK)])
def test_some_kills(ranks: int, kills: int, first: int, fork_server: ForkServer, tmp_path: Path) -> None:
    """Three of one process, two of one or both of two; more as long as none of them came while a file was written."""
    outcomes: list[Outcome] = []
    for _, outcome in crash_runs(fork_server, tmp_path, kills=60, kills_per_run=3, seed=first, ranks=ranks):
        assert outcome.failure == ""
        outcomes.append(outcome)
        if sum(one.kills for one in outcomes) >= kills and any(one.while_writing for one in outcomes):
            return
    pytest.fail("none of sixty kills came while a file was written")


ENDLESS = ("--epochs", "100000", "--decay1", "1", "--decay2", "1", "--step3", "50000", "--momentum", "0.9")
ENDLESS += ("--save-every", "4")  # alone, as what comes while one is written is put off
"""Four rounds of one step, each evaluated, then one of half a minute."""
PLAN_S = 1.5
"""More processor time than it takes to plan the last round, where a signal stops a run at once."""


def into_the_endless_round(
    fork_server: ForkServer, directory: Path, data: Path, *flags: str, ranks: int = 1
) -> ForkedRun:
    process = fork_server.start([*train_words(data, directory), *ENDLESS, *flags], directory.with_suffix(".log"), ranks)

    def there() -> bool:
        with contextlib.suppress(FileNotFoundError):  # as it is for a moment while one takes the place of another
            return read_metadata(directory / "resume.pt")["position"]["comm_round"] == 4
        return False

    assert wait_until(there, PATIENCE_S)
    worked = [processor_seconds(pid) for pid in process.pids]
    assert wait_until(
        lambda: all(processor_seconds(pid) > then + PLAN_S for pid, then in zip(process.pids, worked, strict=True)),
        PATIENCE_S,
    )
    return process


def processor_seconds(pid: int) -> float:
    """How long a process has computed."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("second", "ranks"), [(False, 1), (True, 1), (False, 2)])
def test_a_chunk_that_does_not_end_in_time(
    second: bool, ranks: int, fork_server: ForkServer, data: Path, tmp_path: Path
) -> None:
    """The last save stands, after --grace seconds or at once where a second signal comes."""
    grace = "600" if second else "1.5"
    flags = ("--grace", grace, "--executor", "looped")
    process = into_the_endless_round(fork_server, tmp_path / "run", data, *flags, ranks=ranks)
    began = time.monotonic()
    process.send(signal.SIGTERM)
    if second:
        # not sooner, for what comes within a second of the first says the same again, and again if it was noticed late
        while not wait_until(lambda: not process.running(), 2.5):
            process.send(signal.SIGTERM)
    assert process.statuses() == [75] * ranks
    assert 1 < time.monotonic() - began < 60
    log = process.log.read_text()
    assert "Traceback" not in log and "--continue` goes on" in log.splitlines()[-1]
    stood = run_files(tmp_path / "run")
    assert "'comm_round': 4," in stood["resume.pt"][0][0] and stood["metrics.jsonl"].count(b"\n") == 4


@pytest.mark.parametrize("last", [0, 1])
def test_a_signal_while_another_rank_is_gone(last: int, fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """It stops the rank that waits in vain, as it would have where the other came: the last save stands."""
    words = [*train_words(data, tmp_path / "run"), "--epochs", "100000", "--eval-freq1", "1", "--decay1", "1"]
    process = fork_server.start([*words, "--decay2", "1"], tmp_path / "run.log", ranks=2)
    assert wait_until((tmp_path / "run" / "resume.pt").exists, PATIENCE_S)
    process.send(signal.SIGSTOP, [1 - last])
    process.send(signal.SIGTERM, [last])
    assert not wait_until(lambda: not process.running([last]), 1.0), "it waits for the other"
    process.send(signal.SIGKILL, [1 - last])
    assert process.statuses()[last] == 75
    line = process.log.read_text().splitlines()[-1]
    assert line.startswith("fastlocal: stopped by a signal, without saving: ") and "rank" in line
    assert line.endswith("--continue` goes on")


def test_one_writer(fork_server: ForkServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = into_the_endless_round(fork_server, tmp_path / "run", data)
    for flag in ("--overwrite", "--continue"):
        outcome = run(capsys, *train_words(data, tmp_path / "run"), *ENDLESS, flag)
        (line,) = outcome.err.splitlines()
        assert outcome.status == 2 and f"process {process.pid} on" in line and "--log-pth" in line
    process.send(signal.SIGKILL)
    assert process.status() == -signal.SIGKILL
    assert run(capsys, *train_words(data, tmp_path / "run"), "--overwrite").status == 0


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_full_disk(store: str, fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """One line, and the last save goes on when there is room again. (No file may grow beyond 20,000 bytes.)"""
    flags = ["--momentum", "0.9", "--eval-freq1", "8", "--save-freq1", "1000000", "--client-store", store, "--epochs"]
    assert fork_server.start([*train_words(data, tmp_path / "wanted"), *flags, "16"], tmp_path / "log").status() == 0
    words = [*train_words(data, tmp_path / "run"), *flags]
    assert fork_server.start([*words, "4"], tmp_path / "run.log").status() == 0
    words += ["16", "--continue"]
    unlimited = resource.prlimit(fork_server.server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(fork_server.server.pid, resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    process = fork_server.start(words, tmp_path / "run.log")
    resource.prlimit(fork_server.server.pid, resource.RLIMIT_FSIZE, unlimited)
    assert process.status() == 1
    log = process.log.read_text()
    assert "Traceback" not in log and "Exception ignored" not in log
    assert log.splitlines()[-1].startswith("fastlocal: error: File too large")
    assert not list((tmp_path / "run").glob(".*.tmp"))
    again = fork_server.start(words, tmp_path / "run.log")
    assert again.status() == 0, again.log.read_text()
    assert "going on after" in again.log.read_text()
    assert difference(run_files(tmp_path / "run"), run_files(tmp_path / "wanted")) == ""
