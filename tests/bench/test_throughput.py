"""The training benches: what is measured is the same training, and what is written can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import grid, memory, plot, scaling, throughput
from bench.case import Case, machine
from bench.loops import LOOPS, ON_GPU_ONLY, REFERENCE
from bench.tables import merge, read
from bench.turns import measure
from bench.variant import LATE, Variant, Worker
from bench.worker import task_of


def test_processes_take_turns_after_the_gate() -> None:
    """The reference and an executor train the same rounds from the same weights; one that cannot train has a fault."""
    in_fp32 = f"{REFERENCE}, fp32"
    wanted = [REFERENCE, "fastlocal stacked", "fastlocal looped client_lr=[1]", in_fp32]
    cases = [Case("mlp", 3, 4, 2), Case("mlp", 2, 4, 2, "bf16")]
    names = [wanted[:3], wanted]
    reported: list[list[int]] = []

    def report(case: Case, found: list[Variant]) -> None:
        reported.append([len(one.seconds) for one in found])

    measured = measure(cases, wanted, REFERENCE, 0.0, at_least=2, most=2, report=report)
    for number, (case, found) in enumerate(measured):
        assert [one.name for one in found] == names[number], "in fp32 there is nothing beside the loop itself"
        assert [len(one.seconds) for one in found] == [2, 2, 0, 2][: len(found)]
        assert [bool(one.fault) for one in found] == [False, False, True, False][: len(found)]
        assert found[1].backend == f"stacked, chunk {case.clients}" and found[1].start is not None
        assert found[2].fault.startswith("TypeError") and "in run_fastlocal" in found[2].said
        assert throughput.is_failure(found[2]) and not throughput.is_failure(found[1])
    assert case == cases[-1]
    turns = [[0, 0, 0], [0, 0, 0], [1, 1, 0], [2, 2, 0]]
    assert reported == [*turns, *([*counts, counts[0]] for counts in turns)], "what a killed bench leaves"


def test_what_starts_too_late_is_left_out() -> None:
    """Before its process is begun, or while it is."""
    for seconds in (0.0, 0.1):
        ((_, found),) = measure([Case("mlp", 2, 4, 1)], [REFERENCE, "vmap"], REFERENCE, 0.0, case_seconds=seconds)
        assert [(one.fault, one.seconds) for one in found] == [(LATE, [])] * 2


def test_the_end_of_a_process_is_explained(tmp_path: Path) -> None:
    with Worker("vmap", [Case("mlp", 2, 4, 4)], tmp_path, {}) as worker:
        worker.prepare(0)
        assert worker._process is not None
        worker._process.kill()
        worker.prepared()
        assert worker.variant.fault == "its process ended with status -9: "


def test_a_row_without_times_replaces_none_with_times(tmp_path: Path) -> None:
    """A bench that is stopped before its first turn, or has no time for a variant, loses nothing."""
    case, path = Case("mlp", 2, 4, 1), tmp_path / "throughput.csv"
    throughput.record(path, case, [Variant(REFERENCE), Variant("vmap", fault=LATE)], {"commit": ""})
    assert [row["note"] for row in read(path)] == [throughput.UNTIMED, LATE]
    throughput.record(path, case, [Variant(REFERENCE, seconds=[1.0])], {"commit": ""})
    throughput.record(path, case, [Variant(REFERENCE), Variant("vmap", fault="broken")], {"commit": ""})
    rows = {row["variant"]: (row["median_s"], row["note"]) for row in read(path)}
    assert rows == {REFERENCE: ("1.00000", ""), "vmap": ("", "broken")}
    assert throughput.missing(case, ["vmap"], [row | {"note": LATE} for row in read(path)])


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
    merge(tmp_path / "t.csv", rows, keys)
    merge(tmp_path / "t.csv", [rows[1] | {"ratio": "5.00"}], keys)
    assert {row["variant"]: row["ratio"] for row in read(tmp_path / "t.csv")} == {
        REFERENCE: "1.00",
        "vmap": "5.00",
        "other": "",
    }


def test_ratios_to_the_loop_in_fp32() -> None:
    """In bf16 against the loop that took turns in fp32; in fp32 that is the reference itself."""
    times = [Variant(REFERENCE, seconds=[3.0, 3.0]), Variant("vmap", seconds=[2.0, 1.0])]
    in_fp32 = Variant(f"{REFERENCE}, fp32", seconds=[6.0, 4.0])
    rows = throughput.rows_of(Case("mlp", 4, 8, 2, "bf16"), [*times, in_fp32], {})
    assert [row["ratio_fp32"] for row in rows] == ["1.67", "3.50", "1.00"]
    assert [row["ratio_tf32"] for row in rows] == ["", "", ""]
    head, _, _, vmapped, _ = throughput.table(rows).splitlines()
    assert head.endswith("| ratio | to fp32 |") and vmapped.endswith("| 2.25 | 3.50 |")
    rows = throughput.rows_of(Case("mlp", 4, 8, 2, "fp32"), times, {})
    assert [row["ratio_fp32"] for row in rows] == [row["ratio"] for row in rows] == ["1.00", "2.25"]
    assert "to fp32" not in throughput.table(rows)
    assert f"{REFERENCE}, fp32" in grid.variants(grid.CPU_TARGETS)
    assert f"{REFERENCE}, fp32" not in grid.variants(grid.CPU_TARGETS[:1])


def test_cases_by_name() -> None:
    assert grid.cases_of("targets", (), (), "fp32")[0].name == "mlp 64 x 16, H=8, fp32"
    assert grid.cases_of("cnn:3x5,cnn:3x5x1,mlp", (1, 2), (8,), "bf16") == [
        Case("cnn", 3, 5, 4, "bf16"),
        Case("cnn", 3, 5, 1, "bf16"),
        Case("mlp", 1, 8, 8, "bf16"),
        Case("mlp", 2, 8, 8, "bf16"),
    ]
    for word in ("vgg11", "mlp:8", "mlp:0x8", "mlp:8xa", "mlp:1x2x3x4"):
        with pytest.raises(ValueError, match=word):
            grid.cases_of(word, (1,), (8,), "fp32")


def test_what_cannot_fit_or_takes_too_long_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--cases", "mlp:2000000x8,resnet56:8x128", "--turns", "1", "--out", str(tmp_path)]
    for _ in range(2):
        assert throughput.main(words) == 0
    printed = capsys.readouterr().out
    assert "GiB together" in printed and "may take" in printed
    rows = read(tmp_path / "throughput.csv")
    assert [(row["model"], row["variant"]) for row in rows] == [
        ("mlp", throughput.ALL),
        ("resnet56", throughput.ALL),
    ]
    assert all(row["note"] and not row["median_s"] for row in rows)


def test_the_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """With cases that have no row of these sources; what was left out once gives way to what is measured."""
    case, path, about = Case("mlp", 2, 4, 1), tmp_path / "throughput.csv", machine()
    throughput.skip(case, "too large", path, about)
    words = ["--cases", "mlp:2x4x1", "--variants", REFERENCE, "--turns", "0.1", "--out", str(tmp_path)]
    assert throughput.main(words) == 0
    (row,) = read(path)
    assert row["variant"] == REFERENCE and row["ratio"] == "1.00"
    throughput.skip(case, "too large", path, about)
    assert read(path) == [row], "a case that was measured once"
    changed = not about["commit"] or about["commit"].endswith("+")
    assert throughput.missing(case, [REFERENCE, f"{REFERENCE}, fp32"], read(path)) == changed
    assert throughput.missing(case, [REFERENCE, "vmap"], read(path))
    assert throughput.missing(case, [REFERENCE], [row | {"commit": "not a commit"}])


def test_scaling_and_memory_write_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model", "mlp", "--clients", "128", "--steps", "", "--local-steps", "1", "--executor", "stacked"]
    assert scaling.main([*words, "--turns", "0", "--least", "2", "--seconds", "400", "--out", str(tmp_path)]) == 0
    (row,) = read(tmp_path / "scaling.csv")
    assert row["clients"] == "128" and row["rounds"] == "2" and float(row["ms_per_client_step"]) > 0
    assert row["ratio_to_128"] == "1.000"
    monkeypatch.setattr(memory, "CASES", (memory.Measured(Case("mlp", 64, 4, 1), "stacked"),))
    assert memory.main(["--out", str(tmp_path)]) == 0, "the prediction is further off than 25 %"
    (row,) = read(tmp_path / "memory.csv")
    assert 0.75 < float(row["ratio"]) < 1.25 and row["executor"] == "stacked"


@pytest.mark.needs("matplotlib")
def test_figures(tmp_path: Path) -> None:
    found = [Variant(REFERENCE, "", "", [1.0]), Variant("fastlocal auto", "", "", [0.5])]
    rows = [row for n in (1, 8) for row in throughput.rows_of(Case("mlp", n, 8, 2), found, {})]
    merge(tmp_path / "throughput.csv", rows, ("clients", "variant"))
    assert plot.main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "scaling.png").exists()


def test_costs_are_compared_within_a_turn() -> None:
    """The second turn is slow for both: no ratio of medians, where 3 of one would meet 1 of the other."""
    base, more = Case("mlp", 128, 8, 1), Case("mlp", 1280, 8, 1)
    assert scaling.compared(more, [11.0, 33.0, 11.0], base, [1.0, 3.0, 1.1]) == "1.100"
    assert scaling.compared(more, [], base, [1.0]) == ""
