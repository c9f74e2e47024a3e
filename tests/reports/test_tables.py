"""The tables of a sweep, while runs are unfinished, and of directories that are not as they should be."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlocal.common.errors import UsageError
from fastlocal.reports.run_records import read_run
from fastlocal.reports.sweep_records import collect, settings_of
from fastlocal.reports.tables import TABLES, results, summary, write_tables
from tests.helpers.command_line import tree
from tests.helpers.sweep_files import rows_of, write_run, write_sweep

FIELDS = {"seed": [0, 1, 2], "start_lr": [0.05, 0.1]}


def accuracy(values: Mapping[str, Any]) -> float:
    """0.80 to 0.82 at the lower rate, 0.86, 0.89 and 0.92 at the higher one."""
    return 0.80 + 0.01 * values["seed"] if values["start_lr"] == 0.05 else 0.86 + 0.03 * values["seed"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_of_a_finished_sweep(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", FIELDS, lambda values: rows_of(accuracy(values)))
    write_tables(sweep)
    runs, settings, pairs = (read(sweep / name) for name in TABLES)

    assert [row["name"] for row in runs][:2] == ["seed=0,start_lr=0.05", "seed=0,start_lr=0.1"]
    first = runs[0]
    assert (first["seed"], first["start_lr"], first["status"]) == ("0", "0.05", "done")
    assert (first["comm_round"], first["epoch"], first["samples"]) == ("4", "2.0", "2560")
    assert (first["val_acc1"], first["best_val_acc1"], first["best_val_acc1_comm_round"]) == ("0.8", "0.8", "4")

    low, high = settings
    assert (low["start_lr"], low["n"], low["runs"]) == ("0.05", "3", "3")
    numbers = [float(low[f"val_acc1_{part}"]) for part in ("mean", "deviation")]
    assert numbers == pytest.approx([0.81, 0.01])
    half = 4.302652729749464 * 0.03 / 3**0.5
    assert float(high["val_acc1_low"]) == pytest.approx(0.89 - half)
    assert float(high["val_acc1_high"]) == pytest.approx(0.89 + half)

    kept = [row for row in pairs if row["metric"] == "val_acc1"]
    assert [(row["start_lr"], row["against"], row["reference"]) for row in kept] == [
        ("0.1", "first", "start_lr=0.05"),
        ("0.05", "best", "start_lr=0.1"),
    ]
    assert [float(row["difference"]) for row in kept] == pytest.approx([0.08, -0.08])
    assert float(kept[0]["deviation"]) == pytest.approx(0.02) and kept[0]["pairs"] == "3"
    assert {row["reference"] for row in pairs if row["metric"] == "val_loss" and row["against"] == "best"} == {
        "start_lr=0.1"
    }
    before = {name: (sweep / name).read_bytes() for name in TABLES}
    write_tables(sweep)
    assert {name: (sweep / name).read_bytes() for name in TABLES} == before


def test_tables_of_a_sweep_at_work(tmp_path: Path) -> None:
    """Statistics are over finished runs; the others are in the list with what they have."""
    states = {0: "done", 1: "running", 2: "waiting"}
    sweep = write_sweep(
        tmp_path / "sweep",
        FIELDS,
        lambda values: rows_of(accuracy(values)) if values["seed"] == 0 else [],
        lambda values: states[values["seed"]],
    )
    with (sweep / "seed=1,start_lr=0.1" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(rows_of(0.3, (1, 4))[0]) + '\n{"epoch": 1.0, "comm_ro')
    write_tables(sweep)
    runs, settings, _ = (read(sweep / name) for name in TABLES)
    assert [row["status"] for row in runs] == ["done", "done", "running", "running", "waiting", "waiting"]
    assert [row["val_acc1"] for row in runs] == ["0.8", "0.86", "", "0.15", "", ""]
    assert [(row["n"], row["runs"], row["val_acc1_mean"], row["val_acc1_low"]) for row in settings] == [
        ("1", "3", "0.8", ""),
        ("1", "3", "0.86", ""),
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sweep.json").write_text('{"version": 1, "fields": {}, "runs": []}')
    write_tables(tmp_path / "empty")
    assert tree(tmp_path / "empty") == {"sweep.json", *TABLES}


def test_a_diverged_seed_is_not_left_out(tmp_path: Path) -> None:
    """Its loss is null in metrics.jsonl, and NaN in the mean; a metric that one seed lacks has no mean."""

    def rows(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        last = {**rows_of(0.5)[-1], "val_loss": None if values["seed"] == 1 else 0.5}
        return [last | ({"own": 1.0} if values["seed"] == 2 else {})]

    write_sweep(tmp_path / "sweep", {"seed": [0, 1, 2]}, rows)
    write_tables(tmp_path / "sweep")
    (row,) = read(tmp_path / "sweep" / "summary.csv")
    assert (row["n"], row["val_loss_mean"], row["val_loss_low"], row["own_mean"]) == ("3", "nan", "nan", "")
    assert float(row["val_acc1_mean"]) == 0.5


def test_runs_of_one_by_one_are_grouped_by_what_they_compute(tmp_path: Path) -> None:
    """The seed and what only concerns machine and files make no setting; a path given twice counts once."""
    for folder, seed, rate, executor in (("a", 0, 0.1, "looped"), ("b", 1, 0.1, "stacked"), ("c", 0, 0.2, "looped")):
        write_run(tmp_path / folder / "run", rows_of(rate), seed=seed, start_lr=rate, executor=executor)
    again = tmp_path / "a" / ".." / "a" / "run"
    sweep = collect([*(tmp_path / folder / "run" for folder in "abc"), again], "RUN")
    assert [run.name for run in sweep.runs] == ["a/run", "b/run", "c/run"]
    assert sweep.fields == {"start_lr": [0.1, 0.2], "seed": [0, 1]}
    assert [len(setting.by_seed) for setting in settings_of(sweep)] == [2, 1]
    assert [row[-5:] for row in summary(sweep).rows][1][1:] == pytest.approx([0.8, None, None, None])


def test_samples_are_counted_from_what_clients_own(tmp_path: Path) -> None:
    row = {"epoch": 1.5, "comm_round": 3, "iter": 15, "val_loss": 1.0}
    owned = write_run(tmp_path / "owned", [row], partition="iid", batch_size=8, total_batch_size=16)
    np.savez(owned / "partition.npz", indices=np.arange(100), offsets=np.array([0, 40, 100]))
    phases = write_run(tmp_path / "phases", [row], step1=2, step2=4)
    for directory, expected in ((owned, 150), (phases, None)):
        run = read_run(directory)
        assert run.samples(run.rows[-1]) == expected
    (owned / "partition.npz").write_bytes(b"PK torn")
    run = read_run(owned)
    assert run.samples(run.rows[-1]) is None


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "holds no run (config.json, metrics.jsonl) and no sweep (sweep.json)"),
        ({"sweep.json": "{"}, "sweep.json cannot be read"),
        ({"sweep.json": "[]"}, "sweep.json cannot be read"),
        ({"sweep.json": '{"fields": {}, "runs": [{"values": {}}]}'}, "sweep.json cannot be read (KeyError 'name')"),
    ],
)
def test_directories_that_are_refused(files: dict[str, str], problem: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as refused:
        collect([tmp_path], "RUN")
    assert str(tmp_path) in str(refused.value) and problem in str(refused.value)


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    """Whole lines of damaged files are used."""
    run = write_run(tmp_path / "run", rows_of(0.5))
    with (run / "metrics.jsonl").open("a") as file:
        file.write("[1]\n{}\n")
    (run / "config.json").write_text('{"sgd":')
    found = read_run(run)
    assert len(found.rows) == 3 and found.settings == {}
    assert "config.json cannot be read" in found.message and "line 4 of metrics.jsonl" in found.message
    (run / "metrics.jsonl").unlink()
    assert read_run(run).rows == [] and results(collect([run], "RUN")).rows[0][0] == "run"


def test_200_runs_take_moments(tmp_path: Path) -> None:
    fields = {"seed": list(range(5)), "start_lr": [0.01 * 2**i for i in range(8)], "wd": [0.0, 1e-4, 1e-3, 1e-2, 0.1]}
    rounds = range(1, 51)
    write_sweep(tmp_path / "sweep", fields, lambda values: rows_of(0.5 + values["start_lr"] / 9, rounds))
    start = time.process_time()
    write_tables(tmp_path / "sweep")
    assert time.process_time() - start < 3
    assert [len(read(tmp_path / "sweep" / name)) for name in TABLES] == [200, 40, 2 * 39 * 3]
