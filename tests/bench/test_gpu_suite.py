"""What of the GPU suite needs no GPU: parts in processes of their own, their tables, and the page about them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import device_tests, dram, gpu_suite, linear
from bench import kernels as bench
from bench.device import Timing
from bench.gpu_suite import PARTS, Part, run_parts
from bench.summary import summary
from bench.tables import Row, read, write
from bench.targets import TARGETS
from fastlocal import kernels
from fastlocal.kernels.case import Case, cases

CASE = Case("3x4 fp32", lambda device: {}, "fp32", bytes_moved=2**27, flops=6_000_000, large=True)
ABOUT = {
    "gpu": "a card",
    "capability": "9.0",
    "multiprocessors": "132",
    "l2_bytes": str(50 * 2**20),
    "sm_mhz": "1980",
    "memory_mhz": "",
    "power_limit_w": "700",
    "torch": "2.15",
    "triton": "3.9",
    "commit": "abc",
    "copy_gb_per_s": "4000.0",
}


def line(variant: str, ms: float, op: str = "client_sgd") -> Row:
    return bench.row(op, CASE, variant, Timing(ms, ms * 0.9, ms * 1.1, True), copy=4e12) | ABOUT


def part(name: str, program: str, seconds: float = 30.0, needs: str | None = None, together: bool = False) -> Part:
    return Part(
        name,
        ("-c", "import sys; from pathlib import Path; out = Path(sys.argv[2]); " + program),
        seconds,
        needs,
        together,
    )


WRITE = "out.mkdir(parents=True); (out / 'kernels.csv').write_text({text!r}); "
GATE = "out.mkdir(parents=True); (out / 'gate.csv').write_text('op,case,fault\\n{op},a case,{fault}\\n'); "


def states(rows: list[Row]) -> dict[str, tuple[str, str]]:
    return {row["part"]: (row["state"], row["why"]) for row in rows}


def test_one_part_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    parts = [
        part("dies", WRITE.format(text="op,ms\na,1\n") + "print('illegal access'); import os; os._exit(9)"),
        part("works", WRITE.format(text="op,ms\nb,2\n")),
    ]
    rows = run_parts(parts, tmp_path / "out", 100)
    assert states(rows) == {"dies": ("failed", "exit status 9: illegal access"), "works": ("done", "")}
    assert read(tmp_path / "out" / "kernels.csv") == [{"op": "a", "ms": "1"}, {"op": "b", "ms": "2"}]


def test_a_part_is_stopped_with_what_it_started_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE", 1.0)
    program = WRITE.format(text="op\na\n") + "import subprocess; subprocess.run(['sleep', '600'])"
    began = time.monotonic()
    rows = run_parts([part("hangs", program, seconds=6.0)], tmp_path, 100)
    assert time.monotonic() - began < 120
    assert rows[0]["state"] == "stopped" and rows[0]["why"].startswith("still running after 7 s")
    assert read(tmp_path / "kernels.csv") == [{"op": "a"}]


def test_what_no_time_is_left_for_is_said(tmp_path: Path) -> None:
    rows = run_parts([part("never", "raise SystemExit(1)")], tmp_path, seconds=gpu_suite.GRACE)
    assert states(rows) == {"never": ("skipped", "no time was left")}
    assert "- never: skipped, no time was left" in summary(rows, gate=[], tests=[], kernels=[], dram=[])


def test_rows_that_no_time_was_left_for_are_counted() -> None:
    untimed = bench.row("client_sgd", CASE, "torch.compile", None, 4e12, "not timed: no time was left")
    text = summary([], gate=[], tests=[], kernels=[line("triton", 0.05), untimed | ABOUT, untimed | ABOUT], dram=[])
    assert "- client_sgd: 2 rows are empty: not timed: no time was left" in text


def test_a_table_is_whole_or_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"op": "a"}])
    with pytest.raises(TypeError):
        write(tmp_path / "a.csv", [{"op": "b"}, None])  # type: ignore[list-item]
    assert read(tmp_path / "a.csv") == [{"op": "a"}]
    write(tmp_path / "a.csv", [{"op": "b"}, {"op": "c", "ms": "1"}])
    assert read(tmp_path / "a.csv") == [{"op": "b", "ms": ""}, {"op": "c", "ms": "1"}]


def test_a_kernel_that_fails_its_checks_is_not_timed(tmp_path: Path) -> None:
    parts = [
        part("check bad", GATE.format(op="bad", fault="wrong"), together=True),
        part("check good", GATE.format(op="good", fault=""), together=True),
        *(part(f"time {op}", WRITE.format(text="op\n" + op), needs=op) for op in ("bad", "good", "gone")),
    ]
    rows = states(run_parts(parts, tmp_path, 200))
    assert rows["time bad"] == ("skipped", "bad fails its checks")
    assert rows["time gone"] == ("skipped", "gone did not get through its checks")
    assert rows["time good"] == ("done", "")
    assert read(tmp_path / "kernels.csv") == [{"op": "good"}]
    assert {one["op"] for one in read(tmp_path / "gate.csv")} == {"bad", "good"}


def test_every_kernel_is_checked_and_timed_and_those_with_targets_come_first() -> None:
    timed = [one.needs for one in PARTS if one.name.startswith("time ") and one.name != "time linear"]
    assert sorted(op for op in timed if op) == sorted(kernels.TRITON_OPS)
    assert {one.name for one in PARTS if one.together} >= {f"check {op}" for op in kernels.TRITON_OPS}
    judged = {target.op for target in TARGETS}
    assert set(timed[: len(judged)]) >= judged - {"norm_act_backward"}
    assert len({one.name for one in PARTS}) == len(PARTS)


def test_the_summary_says_which_targets_are_met() -> None:
    # 128 MiB in 0.05 ms are 0.671 of a copy; the best of torch takes 0.06 ms
    rows = [line("triton", 0.05), line("torch", 0.2), line("torch._foreach", 0.06), line("torch.compile", 0.04)]
    gate = [
        {"op": "client_sgd", "case": "3x4", "fault": ""},
        {"op": "client_mean", "case": "1x1", "fault": "error 2"},
    ]
    tests = [{"file": "test_a.py", "passed": "7", "failed": "1", "skipped": "2", "first": "test_b: assert 1 == 2"}]
    text = summary([], gate=gate, tests=tests, kernels=rows, dram=[])
    assert "a card (capability 9.0, 132 multiprocessors, L2 50 MiB, up to 1980 MHz, memory ? MHz" in text
    assert "| client_sgd | at least 85 % of copy bandwidth | NO, 0 of 1 | 3x4 fp32 | 0.79 |" in text
    assert "| client_sgd | faster than torch._foreach | yes, 1 of 1 | 3x4 fp32 | 1.20 |" in text
    assert "| client_sgd | faster than torch.compile | NO, 0 of 1 | 3x4 fp32 | 0.80 |" in text
    assert "| conv2d_clients | faster than cuDNN's grouped convolution | not measured | | |" in text
    assert "Gate: 1 of 2 checks passed." in text and "- client_mean (1x1): error 2" in text
    assert "Kernel tests: 7 passed, 1 failed, 2 skipped." in text and "- test_a.py: test_b: assert 1 == 2" in text
    assert "| client_sgd | 3x4 fp32 | 0.0500 | 0.671 | torch.compile | 0.80 |" in text


def test_small_cases_are_not_judged_by_bandwidth() -> None:
    small = line("triton", 1.0) | {"bytes_moved": "1000"}
    assert "| client_sgd | at least 85 % of copy bandwidth | not measured" in summary(
        [], gate=[], tests=[], kernels=[small], dram=[]
    )


def test_the_summary_compares_deterministic_algorithms() -> None:
    rows = [line("triton", 0.1, "conv2d_clients"), line("triton deterministic", 0.15, "conv2d_clients")]
    text = summary([], gate=[], tests=[], kernels=rows, dram=[])
    assert "| conv2d_clients | 3x4 fp32 | 0.1500 | 1.50 |" in text
    assert "deterministic" not in summary([], gate=[], tests=[], kernels=rows[:1], dram=[])


def test_the_targets_name_variants_and_cases_that_are_timed() -> None:
    for target in TARGETS:
        large = [case for case in cases(target.op) if case.large and any(word in case.name for word in target.cases)]
        assert large, target
        variants = {"torch.compile"} if target.op in bench.COMPILED else set()
        variants = variants.union(*(bench.variants(target.op, case) for case in large))
        assert set(target.faster_than) <= variants, target
        if target.copy_fraction:
            assert any(case.bytes_moved >= 2**26 for case in large), target


def test_bytes_are_read_from_what_ncu_prints() -> None:
    printed = '==PROF== connected\n"ID","Metric Name","Metric Value"\n"0","dram__bytes.sum","1,234,567"\n'
    assert dram.counted_bytes(printed) == 1_234_567
    assert dram.counted_bytes(printed + '"1","dram__bytes.sum","3"\n') == 1_234_570
    assert dram.counted_bytes("==ERROR== no permission") is None


def test_an_op_that_ncu_may_not_count_says_why(tmp_path: Path) -> None:
    refuses = tmp_path / "ncu"
    refuses.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM'\nexit 1\n")
    refuses.chmod(0o755)
    assert dram.count(str(refuses), "client_sgd", 60.0)["note"] == "==ERROR== ERR_NVGPUCTRPERM"
    assert dram.count(str(refuses), "client_sgd", 5.0)["note"] == "no time was left"
    assert set(dram.COUNTED) == set(kernels.TRITON_OPS)


def test_a_file_of_tests_is_counted(tmp_path: Path) -> None:
    tests = tmp_path / "test_few.py"
    tests.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'not so'\n"
        "@pytest.mark.skip\ndef test_c(): pass\n"
    )
    row = device_tests.run_file(tests, 60.0)
    assert (row["passed"], row["failed"], row["skipped"]) == ("1", "1", "1")
    assert row["first"].startswith("test_b: AssertionError: not so")
    tests.write_text("import no_such_module\n")
    assert device_tests.run_file(tests, 60.0)["failed"] == "1"
    assert all((device_tests.ROOT / "tests" / name).is_file() for name in device_tests.FILES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [bench.main, gpu_suite.main, linear.main, device_tests.main])
def test_without_a_gpu_one_line_says_so(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out == "There is no CUDA device here: nothing was measured.\n"
    assert not (tmp_path / "out").exists()
