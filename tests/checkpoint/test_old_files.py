"""Files that version 0.1 wrote before the rooms of this package were built still load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.command_line import metrics, run

WRITTEN = Path(__file__).parent / "files_of_0_1"
"""Two clients of the perceptron on the digits, in float64 with momentum, after the first of two epochs."""
CONTINUED = (
    {"comm_round": 3, "train_acc1": 0.515625, "train_loss": 1.960954443948206, "val_loss": 1.8638257216723262},
    {"comm_round": 4, "train_acc1": 0.53125, "train_loss": 1.7541015923046417, "val_loss": 1.6187328631149083},
)
"""The next two evaluations of the version that wrote the files."""


def test_an_old_run_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its momenta, counters and settings are used: the losses are those of the old code, but for rounding."""
    directory = tmp_path / "run"
    shutil.copytree(WRITTEN, directory)
    before = (directory / "metrics.jsonl").read_text()
    words = ["--config", directory / "config.json", "--log-pth", directory]
    assert run(capsys, "train", *words, "--continue", "--epochs", "2").status == 0
    assert (directory / "metrics.jsonl").read_text().startswith(before)
    for row, wanted in zip(metrics(directory)[2:], CONTINUED, strict=True):
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-9)
