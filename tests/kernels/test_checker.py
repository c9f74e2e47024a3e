"""The checker itself: it passes a right kernel and fails each deliberately wrong one."""

from __future__ import annotations

import pytest
import torch

from fastlocal import kernels
from fastlocal.kernels.case import Case, Draws, Inputs
from tests.kernels.checker import check
from tests.kernels.triton_wrong import FAULTS, client_mean_with

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFERENCE = kernels.get("client_mean", "reference")


def case(*, broadcast: bool) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        params = draw.padded(draw.normal(5, 129), extra=3)
        return {"params": params, "total": draw.normal(129), "weight": 0.25, "broadcast": broadcast}

    changed = ("total", "params") if broadcast else ("total",)
    return Case("5x129", make_inputs, "fp32 sum", 0, 0, changed=changed)


@pytest.mark.parametrize("broadcast", [False, True])
def test_a_right_kernel_passes(broadcast: bool) -> None:
    check(case(broadcast=broadcast), client_mean_with(None), REFERENCE, DEVICE)


# A GPU may hide a race; the interpreter's check of addresses does not depend on luck.
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if DEVICE == "cpu" or "race" not in fault])
def test_a_wrong_kernel_fails(fault: str) -> None:
    broadcast = "broadcast" in fault
    with pytest.raises(AssertionError) as raised:
        check(case(broadcast=broadcast), client_mean_with(fault), REFERENCE, DEVICE)
    said = {
        "missing mask": "stray writes in or around total: first at element 129",
        "race": "programs 0 and 1 write the same element",
        "race of the broadcast": "reads what program",
        "unwritten memory": "error nan",
        "changed input": "stray writes in or around params",
    }
    assert said.get(fault, "error") in str(raised.value)


def test_results_of_the_wrong_kind_fail() -> None:
    def half(params: torch.Tensor) -> torch.Tensor:
        return (params * 2).half()

    def double(params: torch.Tensor) -> torch.Tensor:
        return params * 2

    one = Case("3", lambda device: {"params": torch.ones(3, device=device)}, "fp32", 0, 0)
    check(one, double, double, DEVICE)
    with pytest.raises(AssertionError, match=r"output 0 is torch.float16 instead of torch.float32"):
        check(one, half, double, DEVICE)
    with pytest.raises(AssertionError, match=r"shape \(1, 3\) instead of \(3,\)"):
        check(one, lambda params: double(params)[None], double, DEVICE)
    with pytest.raises(AssertionError, match=r"results \[\]"):
        check(one, lambda params: None, double, DEVICE)


def test_gradients_are_compared() -> None:
    one = Case("3", lambda device: {"x": torch.arange(1.0, 4.0, device=device)}, "fp32", 0, 0, differentiated=("x",))
    check(one, lambda x: x * x, lambda x: x * x, DEVICE)
    with pytest.raises(AssertionError, match="gradient of x: error"):
        check(one, lambda x: x.detach() * x, lambda x: x * x, DEVICE)
