"""The bench of averaging finds every way's mean right before it times it, and says where one is wrong."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from bench import averagers, averaging


def test_rows_of_every_way(tmp_path: Path) -> None:
    words = ["--models", "cnn", "--ranks", "2", "--turns", "3", "--seconds", "5", "--out", str(tmp_path)]
    assert averaging.main(words) == 0
    with (tmp_path / "averaging.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    ways = {averagers.PLAIN, averagers.PERIODIC, averagers.POST_LOCAL, averagers.AT_END, averagers.EARLY}
    assert rows.keys() == ways | averagers.FORMATS.keys()
    for name, row in rows.items():
        assert not row["note"] and row["turns"] == "3"
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert (float(row["ratio"]) > 0) if row["of"] else name == averagers.AT_END


def test_a_wrong_mean_is_a_fault() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    off = exact.float()
    off[-1] += 2e-5
    for name, mean, wrong in (
        ("fastlocal", exact.float(), False),
        ("fastlocal", off, True),
        ("fastlocal bf16", off, False),
    ):
        way = averagers.Way(lambda: None, lambda: None, lambda mean=mean: mean)  # type: ignore[misc]
        assert bool(averagers.fault_of(name, way, exact, 6e-3)) == wrong
