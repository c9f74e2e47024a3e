"""Mistakes about H and the rate over a run: status 2, one line, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command_line import run, train_words, tree
from tests.helpers.refusals import assert_refused
from tests.helpers.run_files import difference, run_files

QSR = "--sync qsr --qsr-alpha 0.05"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--sync qrs", ("--sync qrs", "phases, constant, qsr")),
        ("--sync qsr", ("--sync qsr", "--qsr-alpha")),
        ("--sync qsr --qsr-alpha 0", ("--qsr-alpha 0", "above 0")),
        ("--sync qsr --qsr-alpha nan", ("--qsr-alpha nan", "finite")),
        (f"{QSR} --h-min 0", ("--h-min 0", "at least 1")),
        (f"{QSR} --step1 4", ("--step1", "--sync qsr", "--h-min")),
        ("--qsr-alpha 0.05", ("--qsr-alpha", "--sync qsr", "phases")),
        ("--sync constant --step2 4", ("--step2", "--sync constant")),
        ("--post-local-from -1", ("--post-local-from -1", "0 or more")),
        (f"{QSR} --lr-schedule cosine --rounds 5", ("--lr-schedule cosine", "--rounds", "--epochs")),
        (f"{QSR} --rounds 5 --gamma 0 --decay1 1", ("--rounds 5", "rate 0", "--epochs")),
        (f"{QSR} --partition iid --rounds 5", ("--sync qsr", "--partition iid")),
        ("--partition iid --rounds 5 --post-local-from 1", ("--post-local-from", "--partition iid")),
        ("--lr-schedule cosin", ("--lr-schedule cosin", "'cosine'")),
        ("--lr-schedule cosine --gamma 0.5", ("--gamma", "--lr-schedule cosine")),
        ("--lr-schedule three.txt --epochs 1", ("--lr-schedule three.txt", "3 factors", "4 local steps")),
    ],
)
def test_one_line(
    words: str,
    says: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("three.txt").write_text("1 0.5 0.25")
    good = ["train", "--dataset", "npz", "--data-pth", data, "--log-pth", "run", "--device", "cpu", "--batch-size", "8"]
    assert_refused(run(capsys, *good, "--clients", "2", *words.split()), says)
    assert tree(tmp_path) == {"three.txt"}


def test_a_longer_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole rounds go on to the bit; a last round that the end of the run cut short would have been another one."""

    def train(name: str, epochs: int, *more: str) -> tuple[int, str]:
        rule = ("--sync", "qsr", "--qsr-alpha", "0.03", "--client-lr", "0.01", "--epochs", str(epochs))
        outcome = run(capsys, *train_words(data, tmp_path / name)[:-2], *rule, *more)
        return outcome.status, outcome.err

    assert train("whole", 9)[0] == train("whole", 12, "--continue")[0] == train("alone", 12)[0] == 0
    assert difference(run_files(tmp_path / "whole"), run_files(tmp_path / "alone")) == ""
    assert train("cut", 5)[0] == 0  # 20 steps are rounds of 9, 9 and 2
    status, said = train("cut", 12, "--continue")
    assert status == 2 and "--epochs 12: --sync qsr made round 3 for a run of --epochs 5" in said
