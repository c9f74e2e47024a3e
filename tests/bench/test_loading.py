"""A reader that fails costs the bench of sources the figures of its row, and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import loading
from bench.common import read_rows
from bench.loading_readers import DATA_LOADER, FFCV_LOADER, RAW

OPTIONS = argparse.Namespace(workers=1, threads=1)


def test_a_reader_that_does_not_answer_is_ended_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader finds its images; the first is also given no time."""
    monkeypatch.setitem(loading.READERS, RAW, (DATA_LOADER, "torch"))
    monkeypatch.setattr(loading.Reader, "wait_until_open", wait_until_open)
    options = argparse.Namespace(
        workers=1, threads=1, open_limit=60.0, turns=2, seconds=0.1, turn_limit=1.0, out=tmp_path / "rows.csv"
    )
    loading.measure(tmp_path, RAW, options)
    rows = {row["source"]: row for row in read_rows(options.out)}
    assert rows[DATA_LOADER]["note"] == "no answer within 0 s"
    assert rows["torch"]["note"].startswith("its process ended with status 1: FileNotFoundError")
    assert all(row["batches_per_s"] == row["ratio"] == "" and row["turns"] == "0" for row in rows.values())


def wait_until_open(reader: loading.Reader, timeout: float) -> None:
    reader.fault = reader._process.answer(0.0 if reader.name == DATA_LOADER else timeout)["fault"]


def test_ratios_are_of_the_same_turns(tmp_path: Path) -> None:
    speeds = {DATA_LOADER: [1.0, 2.0, 4.0], "ffcv": [9.0, 18.0, 30.0], FFCV_LOADER: [10.0, 20.0]}
    readers = [loading.Reader(tmp_path, RAW, name, OPTIONS) for name in speeds]
    for reader in readers:
        reader.close()
        reader.speeds = dict(enumerate(speeds[reader.name]))
    rows = {row["source"]: row for row in loading.make_rows(RAW, readers)}
    assert rows["ffcv"]["of"] == FFCV_LOADER and rows["ffcv"]["ratio"] == "0.900"
    assert rows[FFCV_LOADER]["ratio"] == "10.000"
    assert [rows[DATA_LOADER][key] for key in ("batches_per_s", "p20", "p80", "turns")] == ["2.0", "1.4", "3.2", "3"]
