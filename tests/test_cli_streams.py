"""Standard streams that are closed, full or of few characters do not cost a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlocal.cli import main

TRAIN = "train --clients 4 --batch-size 8 --rounds 3 --device cpu"


def shell(folder: Path, redirection: str) -> int:
    """The exit status of a small training run under a shell's redirection."""
    command = f"'{sys.executable}' -m fastlocal {TRAIN} --log-pth '{folder}' {redirection}"
    return subprocess.run(["bash", "-c", command]).returncode


@pytest.mark.parametrize(
    ("redirection", "status"),
    [(">&- 2>/dev/full", 0), (">/dev/full 2>&-", 1)],
)
def test_a_run_survives_its_streams(tmp_path: Path, redirection: str, status: int) -> None:
    assert shell(tmp_path / "run", redirection) == status
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "latest.pt").exists()


def test_characters_that_the_terminal_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "rün"
    done = subprocess.run(
        [sys.executable, "-m", "fastlocal", *TRAIN.split(), "--log-pth", str(folder)],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0 and b"\\xfcn" in done.stdout
    assert json.loads((folder / "config.json").read_text())["log"]["log_pth"] == str(folder)


def test_config_settles_anew_what_a_flag_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN.split(), "--log-pth", str(tmp_path / "run")]) == 0
    flags = "--dataset synthetic --model resnet20 --clients 2 --dry-run".split()
    assert main(["train", "--config", str(tmp_path / "run" / "config.json"), *flags]) == 0
    plan = capsys.readouterr().out
    assert "resnet20" in plan and "looped on cpu" in plan
