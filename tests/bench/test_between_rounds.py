"""The bench of the host's time between rounds tells what a device waits for from what is done beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import between_rounds
from bench.common import read_rows


def test_rows_say_what_a_device_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(between_rounds, "CLIENTS", 16)
    monkeypatch.setattr(between_rounds, "POPULATION", 64)
    assert between_rounds.main(["--rounds", "15", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "between_rounds.csv")
    assert [row["case"] for row in rows] == list(between_rounds.CASES)
    for row in rows:
        assert row["rounds"] == "15" and 0 < float(row["after_ms"]) < float(row["host_ms"])
