"""Standard streams that are closed, full or of few characters do not cost a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from fastlocal.cli import main

ROOT = Path(__file__).resolve().parents[2]
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


LIBRARY = """
import sys, torch, warnings
from torch import nn
import fastlocal

class Warns(nn.Linear):
    def forward(self, inputs):
        warnings.warn("odd")
        return super().forward(inputs)

assert sys.stderr is sys.stdout is None
warnings.simplefilter("always")
data = torch.randn(64, 8), torch.arange(64) % 2
for name in ("missing", "closed"):
    run = fastlocal.train(Warns(8, 2), data, data, clients=4, batch_size=8, rounds=2, directory=f"{sys.argv[1]}/{name}")
    assert len(run.history) == 2
    sys.stdout = sys.stderr = open(sys.argv[0])
    sys.stderr.close()
"""


def test_the_library_does_without_streams(tmp_path: Path) -> None:
    """Whoever has none, as under pythonw or in a daemon; a file that is opened must not take their numbers."""
    (tmp_path / "train.py").write_text(LIBRARY)
    command = f"'{sys.executable}' {tmp_path / 'train.py'} {tmp_path} <&- >&- 2>&-"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(["bash", "-c", command], env=environment).returncode == 0
    for name in ("missing", "closed"):
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_command_does_without_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, stream in enumerate((None, closed_file(tmp_path))):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        assert main([*TRAIN.split(), "--log-pth", str(tmp_path / str(number))]) == 0
        assert main(["train", "--clients", "0"]) == 2


def closed_file(folder: Path) -> TextIO:
    with (folder / "closed").open("w") as file:
        return file


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
