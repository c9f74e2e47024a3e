"""The bench of sweeps trains a grid together and apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import sweep
from bench.common import read_rows
from fastlocal.cli import main


def test_a_row_compares_a_sweep_with_its_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs alone train in this process, and the sweep in one of its own."""
    timed, alone = sweep.timed, []

    def here(words: Sequence[str], directory: Path) -> sweep.Times:
        if words[0] == "sweep":
            return timed(words, directory)
        began = time.monotonic()
        assert main([*words, "--log-pth", str(directory)]) == 0
        alone.append(time.monotonic() - began)
        return sweep.Times(0.5, alone[-1], alone[-1])

    monkeypatch.setattr(sweep, "timed", here)
    words = "quickstart --rounds 2 --clients 2 --over seed=0,1 client_lr=0.1"
    assert sweep.main(["--words", words, "--turns", "1", "--executor", "looped", "--out", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "sweep.csv")
    assert (row["runs"], row["clients"], row["turns"]) == ("2", "2", "1") and len(alone) == 2
    assert float(row["alone_start_s"]) == 1 and abs(float(row["alone_training_s"]) - sum(alone)) < 0.01
    together = float(row["sweep_start_s"]) + float(row["sweep_training_s"])
    assert abs(float(row["ratio_whole"]) - together / (1 + sum(alone))) < 0.05 * float(row["ratio_whole"]) + 0.05
