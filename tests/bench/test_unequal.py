"""The bench of unequal clients writes a row of each executor."""

from __future__ import annotations

from pathlib import Path

from bench import unequal
from bench.common import read_rows


def test_a_row_compares_client_steps(tmp_path: Path) -> None:
    words = ["--executors", "stacked", "--last-batches", "fill", "--sigma", "0.3", "--turns", "2"]
    assert unequal.main([*words, "--out", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "unequal.csv")
    assert (row["executor"], row["rounds"], row["clients"]) == ("stacked", "2", "100")
    assert int(row["most_steps"]) > int(row["mean_steps"]) and float(row["ratio_cpu"]) > 0
