"""The bench of populations writes a row of each."""

from __future__ import annotations

from pathlib import Path

from bench import population
from bench.common import read_rows


def test_a_row_holds_the_medians_and_ratios(tmp_path: Path) -> None:
    words = ["--populations", "30", "--clients", "3", "--turns", "2", "--out", str(tmp_path)]
    assert population.main(words) == 0
    (row,) = read_rows(tmp_path / "population.csv")
    assert (row["population"], row["samples"], row["rounds"]) == ("30", "300", "2")
    assert row["ratio_ms"] == row["ratio_cpu_ms"] == "1.000" and float(row["round_ms"]) > 0
