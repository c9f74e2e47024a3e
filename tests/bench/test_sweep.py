"""The bench of sweeps trains a grid together and apart."""

from __future__ import annotations

from pathlib import Path

from bench import sweep
from bench.common import read_rows


def test_a_row_compares_a_sweep_with_its_runs_alone(tmp_path: Path) -> None:
    words = "quickstart --rounds 2 --clients 2 --over seed=0,1 client_lr=0.1"
    assert sweep.main(["--words", words, "--turns", "1", "--executor", "looped", "--out", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "sweep.csv")
    assert (row["runs"], row["clients"], row["turns"]) == ("2", "2", "1")
    together, alone = (float(row[f"{name}_start_s"]) + float(row[f"{name}_training_s"]) for name in ("sweep", "alone"))
    assert abs(float(row["ratio_whole"]) - together / alone) < 0.05
