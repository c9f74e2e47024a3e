"""Runs of several processes whose clients own their samples, stopped within a round and continued on others."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fastlocal.checkpoint.state_file import read_metadata
from tests.checkpoint.test_resume_ranks import within_a_round
from tests.distributed.test_many_processes import assert_alike
from tests.helpers.command_line import run, train_words
from tests.helpers.fork_server import ForkedRun, ForkServer, wait_until
from tests.helpers.run_files import difference, run_files

PATIENCE_S = 120
FLAGS = (
    "--partition iid --population 13 --clients 6 --batch-size 4 --rounds 6 --eval-freq1 3 "
    "--precision fp64 --chunk 1 --debug --wd 0.01"
).split()
KINDS = {
    "kept": "--client-state keep --client-epochs continue --server-optimizer adam --clients-drop 0.2 "
    "--reduce-order fixed --client-lr 0.1 --momentum 0.9 --eval-clients 3 --eval-clients-of all",
    "unequal": "--client-state keep --client-epochs continue --clients-drop 0.2 --reduce-order fixed --client-lr 0.1 "
    "--momentum 0.9 --local-epochs 8.5 --last-batch partial --stragglers 0.3",
    "on disk": "--client-state keep --client-store disk --clients-drop 0.2 --reduce-order fixed --client-lr 0.1 "
    "--momentum 0.9 --save-minutes 0.001",
    "averaged": "--client-state average --cohort-sampling replacement --server-optimizer nesterov --server-lr 0.5 "
    "--server-momentum 0.3 --client-lr 0.02 --momentum 0.5 --eval-clients 3",
}


def begun(fork_server: ForkServer, data: Path, directory: Path, ranks: int, *flags: str) -> ForkedRun:
    words = train_words(data, directory)
    words = words[: words.index("--batch-size")]
    counted = [] if "--local-epochs" in flags else ["--step1", "20"]
    return fork_server.start([*words, *FLAGS, *counted, *flags, "--continue"], directory.with_suffix(".log"), ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_from_any_stop(kind: str, fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """Compare one process with 2 that stop within a round and 3 that go on; in a fixed order to the bit.

    And with 4, of which some rounds leave some without clients.
    """
    flags = tuple(KINDS[kind].split())
    alone = tmp_path / "alone"
    assert begun(fork_server, data, alone, 1, *flags).statuses() == [0]
    if kind == "kept":
        assert begun(fork_server, data, tmp_path / "four", 4, *flags).statuses() == [0] * 4
        assert_alike(tmp_path / "four", alone)
    directory = next(
        path for path in (tmp_path / str(i) for i in range(10)) if _stopped(fork_server, data, path, flags)
    )
    assert begun(fork_server, data, directory, 3, *flags).statuses() == [0, 0, 0]
    assert_alike(directory, alone)
    if "fixed" in flags:  # but the order in which losses are added up
        found = difference(run_files(directory), run_files(alone)).removeprefix("differ: ")
        assert {*found.split(", ")} <= {"", "resume.pt", "metrics.jsonl", "clients.jsonl"}


def _await_lines(process: ForkedRun, log: Path, lines: int) -> None:
    """Wait until a log has this many lines, or the run has ended."""

    def there() -> bool:
        return not process.running() or (log.exists() and log.read_bytes().count(b"\n") >= lines)

    assert wait_until(there, PATIENCE_S)


def _stopped(fork_server: ForkServer, data: Path, directory: Path, flags: tuple[str, ...]) -> bool:
    """Start a run on two processes, and stop it; return whether it stopped within a round."""
    process = begun(fork_server, data, directory, 2, *flags)
    _await_lines(process, directory / "steps.jsonl", 101)
    time.sleep(0.015 * int(directory.name))
    process.send(signal.SIGTERM)
    assert process.statuses() in ([75, 75], [0, 0]), directory.with_suffix(".log").read_text()
    return process.statuses()[0] == 75 and within_a_round(directory)


def test_kills_within_rounds_that_evaluate_clients(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """Own models that were evaluated before a kill are in the state; all files end to the bit."""
    flags = (*KINDS["kept"].split()[:-3], "1", "--eval-freq1", "1", "--rounds", "12", "--save-minutes", "0")
    assert begun(fork_server, data, tmp_path / "alone", 1, *flags).statuses() == [0]
    within = 0
    for number in range(10):
        directory = tmp_path / str(number)
        for lines in (2, 20, 45):
            process = begun(fork_server, data, directory, 1, *flags)
            _await_lines(process, directory / "clients.jsonl", lines)
            time.sleep(0.01 * number)
            process.send(signal.SIGKILL)
            process.statuses()
            within += bool(read_metadata(directory / "resume.pt")["position"]["so_far"]["own_results"])
        assert begun(fork_server, data, directory, 1, *flags).statuses() == [0]
        assert difference(run_files(directory), run_files(tmp_path / "alone")) == ""
        if within:
            return
    pytest.fail("no kill came within a round")


def test_rates_of_past_rounds_cannot_change(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cosine of other rounds would have been another run; a constant rate goes on."""
    words = train_words(data, tmp_path / "run")
    words = [*words[: words.index("--batch-size")], *FLAGS]
    for schedule, status in (("cosine", 2), ("constant", 0)):
        given = [
            *words,
            "--client-lr",
            "0.1",
            "--lr-schedule",
            schedule,
            "--log-pth",
            str(tmp_path / schedule),
            "--step1",
            "2",
            "--rounds",
        ]
        assert run(capsys, *given, "2").status == 0
        outcome = run(capsys, *given, "3", "--continue")
        assert outcome.status == status, outcome.err
        assert status == 0 or "--rounds 3: --lr-schedule cosine" in outcome.err
