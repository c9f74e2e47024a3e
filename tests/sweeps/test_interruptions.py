"""Sweeps that are killed or stopped and continued, on several processes, and with runs that stop early or fail."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fastlocal.cli import main
from tests.helpers.command_line import Outcome, metrics, run
from tests.helpers.fork_server import ForkServer
from tests.helpers.run_files import difference, run_files
from tests.sweeps.test_alone_and_together import sweep_words

WORDS = "--batch-size 4 --clients 4 --epochs 12 --step1 2 --momentum 0.9 --executor looped --client-lr 0.05".split()
OVER = "seed=0,1,2 wd=0,0.1".split()
TABLES = ("results.csv", "summary.csv", "differences.csv")


def contents(directory: Path) -> dict[str, Any]:
    """Read the tables and all runs."""
    stored = json.loads((directory / "sweep.json").read_text())
    files = {name: (directory / name).read_bytes() for name in TABLES}
    runs = {run["name"]: run_files(directory / run["name"]) for run in stored["runs"]}
    return {**files, **runs, "runs": stored["runs"]}


@pytest.mark.parametrize("halving", [[], ["--halving", "3", "--metric", "val_loss"]], ids=["whole", "halved"])
def test_killed_sweeps_end_with_the_same_files(
    halving: list[str], fork_server: ForkServer, data: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = [*WORDS, *halving, "--over", *OVER]
    assert main(sweep_words(data, whole, *words)) == 0
    again = ["sweep", "--log-pth", str(killed), "--continue"]
    kills = 0
    for pause in (0.25, 0.1, 0.45, 0.2, 0.6, None):
        begun = (killed / "sweep.json").exists()
        process = fork_server.start(again if begun else sweep_words(data, killed, *words), tmp_path / "log", 1)
        if pause is not None:
            time.sleep(pause)
            process.send(signal.SIGKILL if kills % 2 else signal.SIGTERM)
        status = process.statuses()[0]
        kills += status in (-signal.SIGKILL, 75)
    assert status == 0 and kills >= 2, (tmp_path / "log").read_text()
    found, expected = contents(killed), contents(whole)
    assert [name for name in expected if not isinstance(expected[name], dict) and found[name] != expected[name]] == []
    for name in (name for name in expected if isinstance(expected[name], dict)):
        assert difference(found[name], expected[name]) == ""


def test_the_worse_half_of_the_settings_stops(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the mean over seeds; a run that stopped early can be continued alone to what it would have been."""
    over = ["--over", "seed=0,1", "client_lr=0.0001,0.001,0.01,0.1"]
    words = [*WORDS[:-2], "--halving", "2", "--metric", "val_loss", *over]
    assert main(sweep_words(data, tmp_path / "sweep", *words)) == 0
    stored = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    ended = {(run["values"]["client_lr"], run["status"]) for run in stored["runs"]}
    assert ended == {(0.0001, "stopped early"), (0.001, "stopped early"), (0.01, "stopped early"), (0.1, "done")}
    rates = (0.0001, 0.001, 0.01, 0.1)
    rounds = {rate: len(metrics(tmp_path / "sweep" / f"seed=1,client_lr={rate}")) for rate in rates}
    assert rounds[0.0001] == rounds[0.001] == 2 and rounds[0.01] == 4 and rounds[0.1] > 4
    stopped = tmp_path / "sweep" / "seed=1,client_lr=0.01"
    assert run(capsys, "train", "--config", stopped / "config.json", "--continue").status == 0
    alone = tmp_path / "alone"
    assert main(["train", *sweep_words(data, alone, *WORDS[:-2])[1:], "--seed", "1", "--client-lr", "0.01"]) == 0
    assert difference(run_files(stopped), run_files(alone)) == ""


def test_a_run_that_fails_leaves_the_others(data: Path, tmp_path: Path) -> None:
    words = [*WORDS[:-2], "--over", "client_lr=1e20,0.1"]
    assert main(sweep_words(data, tmp_path / "sweep", *words)) == 0
    bad, good = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    assert (bad["status"], good["status"]) == ("failed", "done") and "loss is" in bad["message"]
    assert "failed" in (tmp_path / "sweep" / "results.csv").read_text()


def test_several_processes(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """Two ranks, and of some rounds' cohorts one has no clients; the results are those of one process."""
    cohorts = "--partition iid --population 6 --clients 2 --clients-drop 0.4 --batch-size 4 --rounds 8 --client-lr 0.05"
    words = [*cohorts.split(), "--precision", "fp64", "--executor", "looped", "--over", "seed=0,1,2", "--halving", "3"]
    for name, ranks in (("one", 1), ("two", 2)):
        process = fork_server.start(sweep_words(data, tmp_path / name, *words), tmp_path / f"{name}.log", ranks)
        assert process.statuses() == [0] * ranks, (tmp_path / f"{name}.log").read_text()
    for seed in range(3):
        rows = [metrics(tmp_path / name / f"seed={seed}") for name in ("one", "two")]
        for row, expected in zip(*rows, strict=True):
            assert row == pytest.approx(expected, rel=1e-10, nan_ok=True)


@pytest.mark.parametrize("source", ["torch", "resident"])
def test_runs_that_cannot_share_a_program_follow_each_other(
    source: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples that are read from the host, and clients that do not fit at once."""
    words = [*WORDS, "--source", source, *(["--chunk", "3"] if source == "resident" else []), "--over", "seed=0,1"]
    outcome: Outcome = run(capsys, *sweep_words(data, tmp_path / "sweep", *words))
    assert outcome.status == 0 and "one after the other" in outcome.err
    alone = tmp_path / "alone"
    assert main(["train", *sweep_words(data, alone, *words)[1:-2], "--seed", "1"]) == 0
    assert difference(run_files(tmp_path / "sweep" / "seed=1"), run_files(alone)) == ""
