"""The training benches: what is measured is the same training, and what is written can be trusted."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from bench import memory, plot, scaling, throughput
from bench.case import Case
from bench.loops import LOOPS, ON_GPU_ONLY, REFERENCE
from bench.turns import Variant, measure
from bench.worker import task_of


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_processes_take_turns_after_the_gate() -> None:
    """The reference and an executor train the same rounds from the same weights; an unknown one has a fault."""
    wanted = [REFERENCE, "fastlocal stacked", "no such loop"]
    cases = [Case("mlp", 3, 4, 2), Case("mlp", 2, 4, 2)]
    for case, found in measure(cases, wanted, REFERENCE, 0.0, at_least=2, most=2):
        assert [len(one.seconds) for one in found] == [2, 2, 0]
        assert [bool(one.fault) for one in found] == [False, False, True]
        assert found[1].backend == f"stacked, chunk {case.clients}"
    assert case == cases[-1]


@pytest.mark.parametrize("name", [name for name in LOOPS if name not in (REFERENCE, "loop, compiled", *ON_GPU_ONLY)])
def test_every_loop_trains_what_the_reference_trains(name: str, tmp_path: Path) -> None:
    task, sample_ids = task_of(Case("cnn", 3, 4, 2), tmp_path)
    rows = []
    for way in (LOOPS[REFERENCE](task), LOOPS[name](task)):
        for number in range(2):
            way.round(sample_ids(number))
        rows.append(way.row().clone())
    start = torch.cat([value.detach().flatten() for value in task.module.parameters()])
    assert (rows[0] - start).norm() > 1e-3
    assert (rows[1] - rows[0]).norm() < 1e-3 * (rows[0] - start).norm()


def test_rows_hold_medians_and_ratios_of_the_same_turn(tmp_path: Path) -> None:
    case = Case("mlp", 4, 8, 2)
    slow, fast = Variant(REFERENCE, "loop", "", [1.0, 2.0, 4.0]), Variant("vmap", "", "", [0.5, 0.5, 1.0])
    rows = throughput.rows_of(case, [slow, fast, Variant("other", fault="broken")], {"commit": "abc"})
    assert [row["ratio"] for row in rows] == ["1.00", "4.00", ""]
    assert rows[1]["client_steps_per_s"] == "16.0" and rows[1]["samples_per_s"] == "128"
    assert rows[2]["note"] == "broken" and "| broken |" in throughput.table(rows)
    keys = ("model", "clients", "variant")
    throughput.merge(tmp_path / "t.csv", rows, keys)
    throughput.merge(tmp_path / "t.csv", [rows[1] | {"ratio": "5.00"}], keys)
    assert {row["variant"]: row["ratio"] for row in read(tmp_path / "t.csv")} == {
        REFERENCE: "1.00",
        "vmap": "5.00",
        "other": "",
    }


def test_cases_by_name() -> None:
    assert throughput.cases_of("targets", (), (), "fp32")[0].name == "mlp 64 x 16, H=8, fp32"
    assert throughput.cases_of("cnn:3x5,mlp", (1, 2), (8,), "bf16") == [
        Case("cnn", 3, 5, 4, "bf16"),
        Case("mlp", 1, 8, 8, "bf16"),
        Case("mlp", 2, 8, 8, "bf16"),
    ]
    with pytest.raises(ValueError, match="vgg"):
        throughput.cases_of("vgg11", (1,), (8,), "fp32")


def test_what_cannot_fit_or_takes_too_long_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--cases", "mlp:2000000x8,resnet56:8x128", "--turns", "1", "--out", str(tmp_path)]
    assert throughput.main(words) == 0
    printed = capsys.readouterr().out
    assert "GiB together" in printed and "may take" in printed
    assert not (tmp_path / "throughput.csv").exists()


def test_scaling_and_memory_write_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", "mlp", "--clients", "2", "--steps", "", "--local-steps", "1", "--executor", "stacked"]
    assert scaling.main([*words, "--passes", "1", "--out", str(tmp_path)]) == 0
    (row,) = read(tmp_path / "scaling.csv")
    assert row["clients"] == "2" and float(row["ms_per_client_step"]) > 0
    monkeypatch.setattr(memory, "CASES", (memory.Measured(Case("mlp", 64, 4, 1), "stacked"),))
    assert memory.main(["--out", str(tmp_path)]) == 0, "the prediction is further off than 25 %"
    (row,) = read(tmp_path / "memory.csv")
    assert 0.75 < float(row["ratio"]) < 1.25 and row["executor"] == "stacked"


@pytest.mark.needs("matplotlib")
def test_figures(tmp_path: Path) -> None:
    found = [Variant(REFERENCE, "", "", [1.0]), Variant("fastlocal auto", "", "", [0.5])]
    rows = [row for n in (1, 8) for row in throughput.rows_of(Case("mlp", n, 8, 2), found, {})]
    throughput.merge(tmp_path / "throughput.csv", rows, ("clients", "variant"))
    assert plot.main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "scaling.png").exists()
