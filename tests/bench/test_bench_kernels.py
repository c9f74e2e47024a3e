"""The baselines of the kernels compute the same results, and a row holds what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton.errors import TritonError

from bench import kernel_baselines as baselines
from bench import kernels as bench
from bench.device import Timing
from fastlocal import kernels
from fastlocal.kernels.case import Case, Inputs, cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIENT_OPS = ("client_sgd", "client_adamw", "client_norm", "client_mean", "client_sgd_mean")


def test_a_row_holds_rates_and_the_fraction_of_a_copy() -> None:
    case = Case("3x4 fp32", lambda device: {}, "fp32", bytes_moved=2_000_000, flops=6_000_000, large=True)
    got = bench.make_row("client_sgd", case, "triton", Timing(0.001, 0.0009, 0.0011, True), copy=4e12)
    assert tuple(got) == bench.COLUMNS
    assert (got["gb_per_s"], got["copy_fraction"], got["tflop_per_s"]) == ("2000.0", "0.500", "6.00")
    missing = bench.make_row("client_sgd", case, "triton", None, copy=4e12, note="not timed: no time was left")
    assert missing["median_ms"] == "" and missing["note"] == "not timed: no time was left"


def test_a_variant_that_fails_gets_a_row_with_the_reason() -> None:
    case = cases("client_norm")[0]

    def prepare() -> baselines.Run:
        raise TritonError("out of resource.\nmore about it")

    line = bench.time_variant("client_norm", case, "torch", prepare, copy=1e12)
    assert line["note"] == "TritonError: out of resource." and line["median_ms"] == ""


def test_what_is_left_of_the_time_goes_to_the_first_cases() -> None:
    lines = list(bench.measure("client_sgd", 1e12, deadline=0.0))
    large = [case.name for case in cases("client_sgd") if case.large]
    assert [line["case"] for line in lines] == large * 2  # Triton, and torch.compile after all others
    assert {line["note"] for line in lines} == {"not timed: no time was left"}


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


@pytest.mark.parametrize("op", bench.FOREACH)
def test_foreach_is_the_same_step(op: str) -> None:
    for case in (case for case in cases(op) if not case.large):
        inputs = case.make_inputs(torch.device(DEVICE))
        if not bench.takes_foreach(inputs) or not inputs["params"].numel():
            continue
        expected = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        kernels.get(op, "reference", DEVICE)(**expected)
        bench.FOREACH[op](**inputs)()
        for name in case.changed:
            if inputs[name] is not None:
                near = 0.05 if inputs["params"].dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(inputs[name], expected[name], rtol=near, atol=near)


@pytest.mark.parametrize("op", bench.CONVOLUTION_RESULTS)
def test_the_convolutions_of_torch_are_the_same(op: str) -> None:
    for case in cases(op):
        if not case.large and case.tolerance == "tf32":
            inputs: Inputs = case.make_inputs(torch.device(DEVICE))
            inputs.pop("sums", None)
            expected = kernels.get(op, "reference", DEVICE)(**inputs)
            if not inputs["x"].numel():
                continue
            looped = torch.stack(baselines.looped_convolution(bench.CONVOLUTION_RESULTS[op], **inputs)())  # type: ignore[arg-type]
            grouped = baselines.grouped_convolution(bench.CONVOLUTION_RESULTS[op], **inputs)()
            assert isinstance(grouped, Tensor)
            if op.endswith("weight_grad"):
                grouped = grouped.view(expected.shape)
            else:
                grouped = grouped.unflatten(1, (expected.shape[0], -1)).transpose(0, 1)
            torch.testing.assert_close(looped, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(grouped, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", kernels.TRITON_OPS)
def test_every_variant_runs(op: str) -> None:
    """Of the first case that is neither large nor empty, gradients included."""
    first = next(case for case in cases(op) if not case.large and case.bytes_moved)
    variants = bench.variants(op, first, DEVICE)
    assert len(variants) >= 2
    for prepare in variants.values():
        prepare()()
