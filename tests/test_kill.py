"""Runs in processes of their own that are killed, stopped, or find the disk full, and go on."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.forks import Fork, Forks, wait_until
from bench.kill import Outcome, difference, kill_cases, left_behind
from tests.tiny import metrics, run, train_words, write_npz

PATIENCE_S = 120


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.mark.parametrize("ranks", [1, 2])
def test_twelve_kills(ranks: int, tmp_path: Path) -> None:
    """Six of one process, six of one or both of two; six more as long as none of them came while a file was written."""
    outcomes: list[Outcome] = []
    for seed in range(1, 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes += [outcome for _, outcome in kill_cases(folder, kills=6, runs_of=3, seed=seed, ranks=ranks)]
        assert [one.failure for one in outcomes if one.failure] == []
        assert sum(one.kills for one in outcomes) == 6 * seed
        if any(one.while_writing for one in outcomes):
            return
    pytest.fail("none of thirty kills came while a file was written")


ENDLESS = ("--epochs", "100000", "--decay1", "1", "--decay2", "1", "--step3", "100000", "--momentum", "0.9")
"""Four rounds of one step, each evaluated, then one of minutes."""


def into_the_endless_round(forks: Forks, directory: Path, data: Path, *flags: str, ranks: int = 1) -> Fork:
    process = forks.start([*train_words(data, directory), *ENDLESS, *flags], directory.with_suffix(".log"), ranks)

    def there() -> bool:
        return (directory / "resume.pt").exists() and len(metrics(directory)) == 4

    assert wait_until(there, PATIENCE_S)
    time.sleep(0.3)
    return process


@pytest.mark.parametrize(("second", "ranks"), [(False, 1), (True, 1), (False, 2)])
def test_a_chunk_that_does_not_end_in_time(second: bool, ranks: int, forks: Forks, data: Path, tmp_path: Path) -> None:
    """The last save stands, after --grace seconds or at once where a second signal comes."""
    grace = "60" if second else "1.5"
    flags = ("--grace", grace, "--executor", "looped")
    process = into_the_endless_round(forks, tmp_path / "run", data, *flags, ranks=ranks)
    began = time.monotonic()
    process.send(signal.SIGTERM)
    if second:
        time.sleep(1.2)
        process.send(signal.SIGTERM)
    assert process.statuses() == [75] * ranks
    assert 1 < time.monotonic() - began < 10
    log = process.log.read_text()
    assert "Traceback" not in log and "--continue` goes on" in log.splitlines()[-1]
    stood = left_behind(tmp_path / "run")
    assert "'comm_round': 4," in stood["resume.pt"][0][0] and stood["metrics.jsonl"].count(b"\n") == 4


def test_one_writer(forks: Forks, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = into_the_endless_round(forks, tmp_path / "run", data)
    for flag in ("--overwrite", "--continue"):
        outcome = run(capsys, *train_words(data, tmp_path / "run"), *ENDLESS, flag)
        (line,) = outcome.err.splitlines()
        assert outcome.status == 2 and f"process {process.pid} on" in line and "--log-pth" in line
    process.send(signal.SIGKILL)
    assert process.status() == -signal.SIGKILL
    assert run(capsys, *train_words(data, tmp_path / "run"), "--overwrite").status == 0


def test_a_full_disk(forks: Forks, data: Path, tmp_path: Path) -> None:
    """One line, and the last save goes on when there is room again. (No file may grow beyond 20,000 bytes.)"""
    flags = ["--momentum", "0.9", "--epochs", "80", "--eval-freq1", "8", "--save-freq1", "1000000"]
    assert forks.start([*train_words(data, tmp_path / "wanted"), *flags], tmp_path / "log").status() == 0
    words = [*train_words(data, tmp_path / "run"), *flags]
    process = forks.start(words, tmp_path / "run.log")
    assert wait_until((tmp_path / "run" / "resume.1.pt").exists, PATIENCE_S)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    assert process.status() == 1
    log = process.log.read_text()
    assert "Traceback" not in log and "Exception ignored" not in log
    assert log.splitlines()[-1].startswith("fastlocal: error: File too large")
    assert not list((tmp_path / "run").glob(".*.tmp"))
    again = forks.start([*words, "--continue"], tmp_path / "run.log")
    assert again.status() == 0, again.log.read_text()
    assert "going on after" in again.log.read_text()
    assert difference(left_behind(tmp_path / "run"), left_behind(tmp_path / "wanted")) == ""
