"""Runs of several processes that are stopped or killed and go on, on as many processes or on others."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastlocal.checkpoint.resharding import read_saved
from fastlocal.checkpoint.state_file import read_metadata, state_bytes
from tests.distributed.test_many_processes import assert_alike
from tests.helpers.command_line import train_words
from tests.helpers.fork_server import ForkedRun, ForkServer, wait_until
from tests.helpers.processes import ROOT, TORCHRUN, environment
from tests.helpers.run_files import difference, run_files

PATIENCE_S = 120
FLAGS = (
    *("--batch-size", "4", "--total-batch-size", "28", "--chunk", "1", "--momentum", "0.9", "--debug", "--nesterov"),
    *("--label-noise", "--precision", "fp64", "--step1", "12", "--step2", "9", "--decay1", "30", "--epochs", "48"),
)
"""Seven clients in chunks of one, 96 local steps in rounds of twelve."""


@pytest.fixture(scope="module")
def undisturbed(fork_server: ForkServer, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On two processes."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert begun(fork_server, data, directory, 2).statuses() == [0, 0], directory.with_suffix(".log").read_text()
    return directory


def begun(fork_server: ForkServer, data: Path, directory: Path, ranks: int, *flags: str) -> ForkedRun:
    words = [*train_words(data, directory), *FLAGS, *flags, "--continue"]
    return fork_server.start(words, directory.with_suffix(".log"), ranks)


def stopped(
    fork_server: ForkServer, data: Path, directory: Path, ranks: int, who: list[int] | None, lines: int, *flags: str
) -> bool:
    """A stretch of a run, until it has written so many lines of steps.jsonl more; whether a signal ended it."""
    log = directory / "steps.jsonl"
    wanted = lines + (log.read_bytes().count(b"\n") if log.exists() else 0)
    process = begun(fork_server, data, directory, ranks, *flags)

    def come() -> bool:
        return not process.running() or (log.exists() and log.read_bytes().count(b"\n") >= wanted)

    assert wait_until(come, PATIENCE_S)
    time.sleep(0.02 * (lines % 5))
    process.send(signal.SIGTERM, who)
    statuses, said = process.statuses(), directory.with_suffix(".log").read_text()
    assert statuses in ([75] * ranks, [0] * ranks), said
    assert "Traceback" not in said
    return statuses[0] == 75


def within_a_round(directory: Path) -> bool:
    numbers = read_metadata(directory / "resume.pt")
    return any(part["done"] for part in numbers.get("parts", [numbers["position"].get("so_far")]))


def test_a_signal_to_all_ranks_or_one_stops_all(
    fork_server: ForkServer, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    within: set[str] = set()
    for number in range(10):
        directory = tmp_path / str(number)
        for lines, who in ((1, None), (85, [1]), (87, None), (86, [1])):
            if stopped(fork_server, data, directory, 2, who, lines) and within_a_round(directory):
                within.add(str(who))
        assert begun(fork_server, data, directory, 2).statuses() == [0, 0]
        assert difference(run_files(directory), run_files(undisturbed)) == ""
        if within == {"None", "[1]"}:
            return
    pytest.fail("never stopped within a round")


def test_going_on_with_other_numbers_of_processes(
    fork_server: ForkServer, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Stopped within rounds; the same to the rounding of sums, and in a fixed order of reduction to the bit.

    tests/checkpoint/test_resume_populations.py has sums in any order.
    """
    flags, other = ("--reduce-order", "fixed"), tmp_path / "alone"

    def within_rounds(directory: Path) -> bool:
        """Stopped there on each of these numbers of processes, in three attempts of the eight rounds at most."""
        return all(
            any(
                stopped(fork_server, data, directory, number, None, 2, *flags) and within_a_round(directory)
                for _ in range(3)
            )
            for number in (2, 1)
        )

    directory = next((path for path in (tmp_path / str(i) for i in range(10)) if within_rounds(path)), None)
    assert directory is not None, "never stopped within a round"
    assert begun(fork_server, data, directory, 3, *flags).statuses() == [0] * 3
    assert_alike(directory, undisturbed)
    assert begun(fork_server, data, other, 1, *flags).status() == 0
    wanted, found = run_files(other), run_files(directory)
    assert difference(found, wanted).removeprefix("differ: ") in ("", "metrics.jsonl", "metrics.jsonl, resume.pt")


def test_one_process_pays_what_two_owe(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """What bf16 lost on both ranks is in its next mean in full: a run that forgets it is off by just that."""
    paid, forgotten, flags = tmp_path / "paid", tmp_path / "forgotten", ("--wire-format", "bf16", "--epochs")
    assert begun(fork_server, data, paid, 2, *flags, "6").statuses() == [0, 0]
    state = read_saved(paid / "resume.pt", 0, 1)
    shutil.copytree(paid, forgotten)
    owed = state.tensors.pop("feedback owed to the mean").double()
    (forgotten / "resume.pt").write_bytes(b"".join(state_bytes(state)))
    rows = []
    for directory in (paid, forgotten):
        assert begun(fork_server, data, directory, 1, *flags, "12").status() == 0
        after = read_saved(directory / "resume.pt", 0, 1)
        assert not any(name.startswith("feedback") for name in after.tensors)
        rows.append(after.tensors["row"])
    assert owed.abs().max() > 1e-6
    assert (rows[0] - rows[1] - owed / 7).abs().max() < 1e-12


def test_a_save_where_the_ranks_meet(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """With one chunk each, the clock lets ranks save there alone: a round is trained, and nothing of it is logged."""
    directory = tmp_path / "run"
    flags = ("--model", "resnet20", "--bn-batches", "2", "--total-batch-size", "8", "--save-minutes", "0.000001")
    assert begun(fork_server, data, directory, 2, *flags, "--epochs", "6").statuses() == [0, 0]
    wanted = run_files(directory)
    (directory / "resume.pt").unlink()
    parts = read_metadata(directory / "resume.1.pt")["parts"]
    assert [part["done"] for part in parts] == [[[0, 1]], [[1, 2]]]
    assert begun(fork_server, data, directory, 2, *flags, "--epochs", "6").statuses() == [0, 0]
    assert difference(run_files(directory), wanted) == ""


def test_torchrun_starts_it_again(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """After its first rank was killed: no line of metrics.jsonl twice, and none missing."""
    for number in range(5):
        directory = tmp_path / str(number)
        if killed_under_torchrun(data, directory):
            break
    else:
        pytest.fail("each time the run was over before its first rank was killed")
    found, wanted = run_files(directory), run_files(undisturbed)
    assert difference(found, wanted) == ""


def killed_under_torchrun(data: Path, directory: Path) -> bool:
    """A run of two ranks that torchrun starts, and starts again where the first one was killed in time."""
    words = [*train_words(data, directory), *FLAGS]
    with directory.with_suffix(".log").open("w") as log:
        torchrun = subprocess.Popen(
            [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2", "-m", "fastlocal", *words],
            env=environment(),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            assert wait_until((directory / "resume.pt").exists, PATIENCE_S)
            first = rank_of(torchrun.pid, 0)
            if first is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(first, signal.SIGKILL)
            assert torchrun.wait(PATIENCE_S) == 0, directory.with_suffix(".log").read_text()[-3000:]
        finally:
            torchrun.terminate()
            torchrun.wait()
    return "going on after" in directory.with_suffix(".log").read_text()


def rank_of(launcher: int, rank: int) -> int | None:
    """The process of that rank among the children of a torchrun; None where it has ended."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    return None
