"""The bench of averaging compares every method's mean with the exact one before it times it."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from bench import averaging


def test_rows_of_every_method(tmp_path: Path) -> None:
    words = ["--models", "cnn", "--ranks", "2", "--turns", "3", "--seconds", "5", "--out", str(tmp_path)]
    assert averaging.main(words) == 0
    with (tmp_path / "averaging.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {averaging.PLAIN, averaging.PERIODIC} | averaging.OWN.keys()
    for row in rows.values():
        assert not row["note"] and row["turns"] == "3"
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert float(row["ratio"]) > 0 and row["of"] == averaging.PLAIN


def test_a_wrong_mean_is_a_fault() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    off = exact.float()
    off[-1] += 2e-5
    for name, mean, wrong in (
        ("fastlocal", exact.float(), False),
        ("fastlocal", off, True),
        ("fastlocal bf16", off, False),
    ):
        method = averaging.Method(lambda: None, lambda: None, lambda mean=mean: mean)  # type: ignore[misc]
        assert bool(averaging.fault_of(name, method, exact)) == wrong
