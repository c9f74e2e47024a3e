"""The page about a run of the GPU suite."""

from __future__ import annotations

from bench import kernels as bench
from bench.common import Row
from bench.device import Timing
from bench.interleaved import Measurement
from bench.loops import REFERENCE
from bench.summary import summary
from bench.targets import TARGETS
from bench.throughput import make_rows
from bench.training_case import TrainingCase
from fastlocal.kernels.case import Case as KernelCase
from fastlocal.kernels.case import cases

CASE = KernelCase("3x4 fp32", lambda device: {}, "fp32", bytes_moved=2**27, flops=6_000_000, large=True)
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
    return bench.make_row(op, CASE, variant, Timing(ms, ms * 0.9, ms * 1.1, True), copy=4e12) | ABOUT


def test_rows_that_no_time_was_left_for_are_counted() -> None:
    untimed = bench.make_row("client_sgd", CASE, "torch.compile", None, 4e12, "not timed: no time was left")
    text = summary([], ABOUT, {"kernels": [line("triton", 0.05), untimed | ABOUT, untimed | ABOUT]})
    assert "- client_sgd: 2 rows are empty: not timed: no time was left" in text


def test_the_summary_says_which_targets_are_met() -> None:
    # 128 MiB in 0.05 ms are 0.671 of a copy; the best of torch takes 0.06 ms
    rows = [line("triton", 0.05), line("torch", 0.2), line("torch._foreach", 0.06), line("torch.compile", 0.04)]
    gate = [
        {"op": "client_sgd", "case": "3x4", "fault": ""},
        {"op": "client_mean", "case": "1x1", "fault": "error 2"},
    ]
    tests = [{"file": "test_a.py", "passed": "7", "failed": "1", "skipped": "2", "first": "test_b: assert 1 == 2"}]
    text = summary([], ABOUT, {"gate": gate, "tests": tests, "kernels": rows})
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
    assert "| client_sgd | at least 85 % of copy bandwidth | not measured" in summary([], ABOUT, {"kernels": [small]})


def test_the_summary_compares_deterministic_algorithms() -> None:
    rows = [line("triton", 0.1, "conv2d_clients"), line("triton deterministic", 0.15, "conv2d_clients")]
    text = summary([], ABOUT, {"kernels": rows})
    assert "| conv2d_clients | 3x4 fp32 | 0.1500 | 1.50 |" in text
    assert "deterministic" not in summary([], ABOUT, {"kernels": rows[:1]})


def test_the_targets_name_variants_and_cases_that_are_timed() -> None:
    for target in TARGETS:
        large = [case for case in cases(target.op) if case.large and any(word in case.name for word in target.cases)]
        assert large, target
        variants = {"torch.compile"} if target.op in bench.COMPILED_OPS else set()
        variants = variants.union(*(bench.variants(target.op, case) for case in large))
        assert set(target.faster_than) <= variants, target
        if target.copy_fraction:
            assert any(case.bytes_moved >= 2**26 for case in large), target


def test_training_comes_first_and_what_failed_says_why() -> None:
    case = TrainingCase("resnet56", 32, 128, 2, "bf16")
    loop = Measurement(REFERENCE, "loop", start_seconds=9.0, seconds=[1.0, 1.2])
    own = Measurement("fastlocal stacked", "stacked", start_seconds=20.0, seconds=[0.1, 0.1])
    gone = Measurement("vmap", fault="OutOfMemoryError: no")
    states = [
        {"part": "training", "state": "done", "seconds": "50", "why": "", "output": "a table"},
        {"part": "verify", "state": "failed", "seconds": "5", "why": "exit status 1: no", "output": "Traceback\nno"},
    ]
    text = summary(states, ABOUT, {"throughput": make_rows(case, [loop, own, gone], {})})
    assert "| resnet56 32 x 128, H=2, bf16 | fastlocal stacked | 11.00 | 100.00 | 81,920 | 20.0 | stacked |" in text
    assert "| vmap | OutOfMemoryError: no | |" in text
    assert text.index("a card") < text.index("11.00") < text.index("Parts: 1 of 2 ran") < text.index("## Kernels")
    assert text.endswith("```\nTraceback\nno\n```\n") and "a table" not in text
