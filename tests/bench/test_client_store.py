"""The bench of the clients' store writes a row for each number of local steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import client_store
from bench.common import read_rows


def test_a_row_compares_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_store, "WARM_UP", 0)
    words = ["--executor", "looped", "--local-steps", "1", "--saves", "1", "--turns", "1"]
    assert client_store.main([*words, "--out", str(tmp_path)]) == 0
    (row,) = read_rows(tmp_path / "client_store.csv")
    assert (row["local_steps"], row["saves"], row["turns"]) == ("1", "1", "1")
    assert float(row["disk_seconds"]) > 0 and float(row["ratio_seconds"]) > 0
