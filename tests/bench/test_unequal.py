"""The bench of unequal clients writes a row of each executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import unequal
from bench.common import read_rows


def test_a_row_compares_client_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unequal, "WARM_UP", 1)
    words = ["--executors", "stacked", "--last-batches", "fill", "--sigma", "0.3", "--turns", "1"]
    assert unequal.main([*words, "--out", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "unequal.csv")
    assert (row["executor"], row["rounds"], row["clients"]) == ("stacked", "1", "100")
    assert int(row["most_steps"]) > int(row["mean_steps"]) and float(row["ratio_cpu"]) > 0
