"""What of the GPU benches needs no GPU: counted bytes, rows, the summary, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import gpu_suite
from bench import kernels as bench
from bench.device import Timing
from fastlocal import kernels
from fastlocal.kernels.case import Case, cases

CASE = Case("3x4 fp32", lambda device: {}, "fp32", bytes_moved=2_000_000, flops=6_000_000, large=True)
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


def line(variant: str, ms: float, op: str = "client_sgd") -> bench.Row:
    return bench.row(op, CASE, variant, Timing(ms, ms * 0.9, ms * 1.1, True), copy=4e12) | ABOUT


def test_a_row_holds_rates_and_the_fraction_of_a_copy() -> None:
    got = bench.row("client_sgd", CASE, "triton", Timing(0.001, 0.0009, 0.0011, True), copy=4e12)
    assert tuple(got) == bench.MEASURED
    assert (got["gb_per_s"], got["copy_fraction"], got["tflop_per_s"]) == ("2000.0", "0.500", "6.00")
    missing = bench.row("client_sgd", CASE, "triton", None, copy=4e12, note="not timed: no time was left")
    assert missing["median_ms"] == "" and missing["note"] == "not timed: no time was left"


def test_the_summary_compares_with_the_best_of_the_others() -> None:
    rows = [line("triton", 0.001), line("torch", 0.004), line("torch.compile", 0.002)]
    checks = [
        {"op": "client_sgd", "case": "3x4", "fault": ""},
        {"op": "client_mean", "case": "1x1", "fault": "error 2"},
    ]
    text = gpu_suite.summary(checks, rows, [])
    assert "a card (capability 9.0, 132 multiprocessors, L2 50 MiB, up to 1980 MHz, memory ? MHz" in text
    assert "Gate: 1 of 2 checks passed." in text and "- client_mean (1x1): error 2" in text
    assert "| client_sgd | 3x4 fp32 | 0.0010 | 0.500 | 0.85 | torch.compile | 2.00 |" in text


def test_the_summary_of_nothing_says_so() -> None:
    checks = [{"op": "client_sgd", "case": "3x4", "fault": "Race"}]
    assert "Gate: 0 of 1 checks passed." in gpu_suite.summary(checks, [], [])


def test_bytes_are_read_from_what_ncu_prints() -> None:
    printed = '==PROF== connected\n"ID","Metric Name","Metric Value"\n"0","dram__bytes.sum","1,234,567"\n'
    assert gpu_suite.counted_bytes(printed) == 1_234_567
    assert gpu_suite.counted_bytes("==ERROR== no permission") is None


CLIENT_OPS = ("client_sgd", "client_norm", "client_mean", "client_sgd_mean")


@pytest.mark.parametrize("op", CLIENT_OPS)
def test_bytes_moved_are_those_of_the_tensors(op: str) -> None:
    for case in cases(op):
        if case.large:
            inputs = case.make_inputs(torch.device("meta"))
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            read = sum(size(value) for name, value in tensors.items() if name != "shadow")
            written = sum(size(tensors[name]) for name in case.changed)
            # per-client numbers are not counted, and a mask is not read where nothing decays
            assert 0.98 < case.bytes_moved / (read + written) <= 1.0, case.name


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_foreach_sgd_is_client_sgd() -> None:
    draw = torch.Generator().manual_seed(0)
    params, momentum, grads = (torch.randn(3, 5, generator=draw) for _ in range(3))
    arguments = {"mu": 0.9, "weight_decay": 0.1, "nesterov": True}
    rates, mask = torch.rand(3, generator=draw), torch.tensor([1.0, 0, 1, 1, 0])
    expected = [one.clone() for one in (params, momentum, grads)]
    kernels.get("client_sgd", "reference")(*expected, rates, mask, **arguments)
    bench.foreach_sgd(params, momentum, grads, rates, mask, **arguments)
    torch.testing.assert_close(params, expected[0])
    torch.testing.assert_close(momentum, expected[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("main", [bench.main, gpu_suite.main])
def test_without_a_gpu_one_line_says_so(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out == "There is no CUDA device here: nothing was measured.\n"
    assert not (tmp_path / "out").exists()
