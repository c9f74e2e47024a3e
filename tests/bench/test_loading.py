"""A reader that does not answer costs the bench of sources its row's figures, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import loading


def test_who_does_not_answer_is_ended_and_said(tmp_path: Path) -> None:
    readers = [loading.Reader(tmp_path, loading.RAW, name, 1, 1) for name in ("DataLoader", "resident", "torch")]
    stuck, there, gone = readers
    assert stuck.answer(0.0, "opening") is None
    assert gone.answer(60.0, "opening") is None  # there are no images
    for reader in readers:
        reader.end()
    there.speeds = {0: 30.0, 1: 10.0, 2: 20.0}
    loading.save(tmp_path / "rows.csv", loading.summary(readers))
    rows = {row["source"]: row for row in loading.known(tmp_path / "rows.csv")}
    assert rows["DataLoader"]["note"] == "no answer within 0 s while opening"
    assert rows["torch"]["note"] == "ended while opening"
    assert [float(rows["resident"][key]) for key in ("batches_per_s", "p20", "p80")] == [20.0, 14.0, 26.0]
    assert rows["resident"]["ratio"] == rows["DataLoader"]["batches_per_s"] == ""


def test_ratios_are_of_the_same_turns(tmp_path: Path) -> None:
    speeds = {"DataLoader": [1.0, 2.0, 4.0], "ffcv": [9.0, 18.0, 30.0], loading.BARE: [10.0, 20.0]}
    readers = [loading.Reader(tmp_path, loading.RAW, name, 1, 1) for name in speeds]
    for reader in readers:
        reader.end()
        reader.speeds = dict(enumerate(speeds[reader.name]))
    rows = {row["source"]: row for row in loading.summary(readers)}
    assert rows["ffcv"]["of"] == loading.BARE and rows["ffcv"]["ratio"] == pytest.approx(0.9)
    assert rows[loading.BARE]["ratio"] == 10.0
