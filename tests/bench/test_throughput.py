"""The training benches: all variants train the same, and a row can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import memory, plot, scaling, throughput
from bench.common import merge_rows, read_rows
from bench.interleaved import LATE, Measurement, Worker, measure_case
from bench.loops import BASELINES, REFERENCE
from bench.training_case import CPU_TARGETS, TrainingCase, parse_cases
from bench.worker import make_task, prepare_run
from fastlocal.runs.run import train


def test_variants_take_turns_after_the_first_round() -> None:
    """The reference and an executor train the same round from the same weights; one that cannot train has a fault.

    As has the last one, which trains with twice the rate, in a precision of its own.
    """
    wrong = "fastlocal looped client_lr=0.02, fp32"
    variants = [REFERENCE, "fastlocal stacked", "fastlocal looped client_lr=[1]", wrong]
    counts = [2, 2, 0, 0]
    reported: list[list[int]] = []

    def report(measurements: list[Measurement]) -> None:
        reported.append([len(one.seconds) for one in measurements])

    case = TrainingCase("mlp", 3, 4, 2, "bf16")
    measurements = measure_case(case, variants, REFERENCE, 0.0, min_turns=2, max_turns=2, report=report)
    assert [one.variant for one in measurements] == variants
    assert [len(one.seconds) for one in measurements] == counts
    assert [bool(one.fault) for one in measurements] == [count == 0 for count in counts]
    assert measurements[1].backend == "stacked, chunk 3" and measurements[1].start_seconds is not None
    assert measurements[2].fault.startswith("TypeError") and "in run_fastlocal" in measurements[2].output
    assert measurements[3].fault == "its first round is 1 away from the reference's"
    assert [throughput.is_failure(one) for one in measurements] == [count == 0 for count in counts]
    # after the start, the warm-up and each turn, so that a bench that is stopped leaves what it has
    assert reported == [[min(count, turn) for count in counts] for turn in (0, 0, 1, 2)]


@pytest.mark.parametrize("seconds", [0.0, 0.1], ids=["before its process", "while it starts"])
def test_a_variant_that_starts_too_late_is_left_out(seconds: float) -> None:
    measurements = measure_case(TrainingCase("mlp", 2, 4, 1), [REFERENCE, "vmap"], REFERENCE, 0.0, case_seconds=seconds)
    assert [(one.fault, one.seconds) for one in measurements] == [(LATE, [])] * 2


def test_the_end_of_a_process_is_explained(tmp_path: Path) -> None:
    with Worker("vmap", TrainingCase("mlp", 2, 4, 4), tmp_path / "vmap", {}) as worker:
        worker.launch()
        assert worker._process is not None
        worker._process._process.kill()
        worker.wait_for_imports(float("inf"))
        assert worker.measurement.fault == "its process ended with status -9: "


def test_a_row_without_times_replaces_none_with_times(tmp_path: Path) -> None:
    """A bench that is stopped before its first turn, or has no time for a variant, loses nothing."""
    case, path = TrainingCase("mlp", 2, 4, 1), tmp_path / "throughput.csv"

    def record(*measurements: Measurement) -> None:
        throughput.record(path, throughput.make_rows(case, measurements, {"commit": ""}))

    record(Measurement(REFERENCE), Measurement("vmap", fault=LATE))
    assert [row["note"] for row in read_rows(path)] == [throughput.UNTIMED, LATE]
    record(Measurement(REFERENCE, seconds=[1.0]))
    record(Measurement(REFERENCE), Measurement("vmap", fault="broken"))
    rows = {row["variant"]: (row["median_s"], row["note"]) for row in read_rows(path)}
    assert rows == {REFERENCE: ("1.00000", ""), "vmap": ("", "broken")}


def test_a_cohort_trains_what_the_reference_trains(tmp_path: Path) -> None:
    """The first round of clients that own their samples."""
    case = TrainingCase("mlp", 3, 4, 2, population=300)
    task, sample_ids = make_task(case, tmp_path)
    loop = BASELINES[REFERENCE](task)
    ids = sample_ids(0)
    assert all(len(ids[:, client].unique()) <= 7 for client in range(3)), "2,000 samples in equal shares"
    loop.round(ids)
    prepared = prepare_run(case, tmp_path / "own", executor="stacked", rounds=1, eval_freq1=1)
    found = train(prepared, overwrite=False, make_loggers=lambda directory: []).global_model.flat_params
    torch.testing.assert_close(found, loop.flat_params(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != REFERENCE])
def test_every_baseline_trains_what_the_reference_trains(name: str, tmp_path: Path) -> None:
    task, sample_ids = make_task(TrainingCase("cnn", 3, 4, 2), tmp_path)
    rows = []
    for baseline in (BASELINES[REFERENCE](task), BASELINES[name](task)):
        for number in range(2):
            baseline.round(sample_ids(number))
        rows.append(baseline.flat_params().clone())
    start = torch.cat([value.detach().flatten() for value in task.module.parameters()])
    assert (rows[0] - start).norm() > 1e-3
    assert (rows[1] - rows[0]).norm() < 1e-3 * (rows[0] - start).norm()


def test_rows_hold_medians_and_ratios_of_the_same_turn(tmp_path: Path) -> None:
    case = TrainingCase("mlp", 4, 8, 2)
    slow, fast = Measurement(REFERENCE, seconds=[1.0, 2.0, 4.0]), Measurement("vmap", seconds=[0.5, 0.5, 1.0])
    rows = throughput.make_rows(case, [slow, fast, Measurement("other", fault="broken")], {"commit": "abc"})
    assert [row["ratio"] for row in rows] == ["1.00", "4.00", ""]
    assert rows[1]["client_steps_per_s"] == "16.0" and rows[1]["samples_per_s"] == "128"
    assert rows[2]["note"] == "broken" and "| broken |" in throughput.markdown(rows)
    keys = ("model", "clients", "variant")
    merge_rows(tmp_path / "t.csv", rows, keys)
    merge_rows(tmp_path / "t.csv", [rows[1] | {"ratio": "5.00"}], keys)
    merged = {row["variant"]: row["ratio"] for row in read_rows(tmp_path / "t.csv")}
    assert merged == {REFERENCE: "1.00", "vmap": "5.00", "other": ""}


def test_ratios_to_the_reference_in_fp32() -> None:
    """In bf16 these are to the reference that took turns in fp32; in fp32 they are those of the row anyway."""
    times = [Measurement(REFERENCE, seconds=[3.0, 3.0]), Measurement("vmap", seconds=[2.0, 1.0])]
    in_fp32 = Measurement(f"{REFERENCE}, fp32", seconds=[6.0, 4.0])
    rows = throughput.make_rows(TrainingCase("mlp", 4, 8, 2, "bf16"), [*times, in_fp32], {})
    assert [row["ratio_fp32"] for row in rows] == ["1.67", "3.50", "1.00"]
    assert [row["ratio_tf32"] for row in rows] == ["", "", ""]
    head, _, _, vmap, _ = throughput.markdown(rows).splitlines()
    assert head.endswith("| ratio | to fp32 |") and vmap.endswith("| 2.25 | 3.50 |")
    rows = throughput.make_rows(TrainingCase("mlp", 4, 8, 2, "fp32"), times, {})
    assert [row["ratio_fp32"] for row in rows] == [row["ratio"] for row in rows] == ["1.00", "2.25"]
    assert "to fp32" not in throughput.markdown(rows)
    assert f"{REFERENCE}, fp32" in throughput.default_variants(CPU_TARGETS)
    assert f"{REFERENCE}, fp32" not in throughput.default_variants(CPU_TARGETS[:1])


def test_cases_by_name() -> None:
    assert parse_cases(["targets"], "fp32")[0].name == "mlp 64 x 16, H=8, fp32"
    assert parse_cases(["cnn:3x5,cnn:3x5x1", "mlp:1x8"], "bf16") == [
        TrainingCase("cnn", 3, 5, 4, "bf16"),
        TrainingCase("cnn", 3, 5, 1, "bf16"),
        TrainingCase("mlp", 1, 8, 8, "bf16"),
    ]
    (cohort,) = parse_cases(["cnn:3of40x5"], "fp32")
    assert (cohort.clients, cohort.population, cohort.name) == (3, 40, "cnn 3 of 40 x 5, H=4, fp32")
    for word in ("vgg11:1x1", "mlp", "mlp:8", "mlp:0x8", "mlp:8xa", "mlp:1x2x3x4", "mlp:1ofx2", "mlp:1of0x2"):
        with pytest.raises(ValueError, match=word):
            parse_cases([word], "fp32")


def test_throughput_scaling_and_memory_write_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ["--out", str(tmp_path)]

    def timed(case: TrainingCase, variants: list[str], reference: str, seconds: float, **rest: Any) -> Any:
        assert (case.name, reference, seconds) == ("mlp 2 x 4, H=1, fp32", REFERENCE, 0.1)
        measurements = [Measurement(name, seconds=[1.0]) for name in variants]
        rest["report"](measurements)
        return measurements

    monkeypatch.setattr(throughput, "measure_case", timed)  # whose processes are those of the tests above
    assert throughput.main(["--cases", "mlp:2x4x1", "--variants", REFERENCE, "--turns", "0.1", *out]) == 0
    (row,) = read_rows(tmp_path / "throughput.csv")
    assert row["variant"] == REFERENCE and row["ratio"] == "1.00"
    words = ["--model", "mlp", "--clients", "128", "--steps", "", "--local-steps", "1", "--executor", "stacked"]
    assert scaling.main([*words, "--turns", "0", "--least", "2", "--seconds", "400", *out]) == 0
    (row,) = read_rows(tmp_path / "scaling.csv")
    assert row["clients"] == "128" and row["rounds"] == "2" and float(row["ms_per_client_step"]) > 0
    assert row["ratio_to_128"] == "1.000"
    monkeypatch.setattr(memory, "CASES", (memory.MemoryCase(TrainingCase("mlp", 64, 4, 1), "stacked"),))
    assert memory.main(out) == 0, "the prediction is further off than 25 %"
    (row,) = read_rows(tmp_path / "memory.csv")
    assert 0.75 < float(row["ratio"]) < 1.25 and row["executor"] == "stacked"


@pytest.mark.needs("matplotlib")
def test_the_figure_is_drawn(tmp_path: Path) -> None:
    measurements = [Measurement(REFERENCE, seconds=[1.0]), Measurement("fastlocal auto", seconds=[0.5])]
    rows = [row for n in (1, 8) for row in throughput.make_rows(TrainingCase("mlp", n, 8, 2), measurements, {})]
    merge_rows(tmp_path / "throughput.csv", rows[:2], ("clients", "variant"))
    assert plot.main(["--folder", str(tmp_path)]) == 1, "one number of clients makes no line"
    merge_rows(tmp_path / "throughput.csv", rows, ("clients", "variant"))
    assert plot.main(["--folder", str(tmp_path)]) == 0
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_compared_within_a_turn() -> None:
    """The second turn is slow for both: no ratio of medians, where 3 of one would meet 1 of the other."""
    base, more = TrainingCase("mlp", 128, 8, 1), TrainingCase("mlp", 1280, 8, 1)
    times = {base: Measurement("a", seconds=[1.0, 3.0, 1.1]), more: Measurement("b", seconds=[11.0, 33.0, 11.0])}
    assert scaling.make_row(more, "auto", times)["ratio_to_128"] == "1.100"
    times[base].seconds.clear()
    assert scaling.make_row(more, "auto", times)["ratio_to_128"] == ""
