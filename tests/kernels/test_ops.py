"""Every op with every backend on every case that the interpreter can take; on a CUDA device, on the device."""

from __future__ import annotations

import pytest
import torch

from fastlocal import kernels
from fastlocal.kernels.case import Case, cases
from tests.kernels.checker import check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CPU = {op: ["cpu"] for op in kernels.CPU_OPS if DEVICE == "cpu"}
WALK = [
    pytest.param(op, backend, case, id=f"{op}-{backend}-{case.name}")
    for op in kernels.OPS
    for backend in ("reference", *(["triton"] if op in kernels.TRITON_OPS else []), *CPU.get(op, []))
    for case in cases(op)
    if not case.large
]


@pytest.mark.parametrize(("op", "backend", "case"), WALK)
def test_op(op: str, backend: str, case: Case) -> None:
    check(case, kernels.get(op, backend, DEVICE), kernels.get(op, "reference", DEVICE), DEVICE)


@pytest.mark.parametrize("op", kernels.OPS)
def test_the_names_of_cases_are_unique(op: str) -> None:
    names = [case.name for case in cases(op)]
    assert len(names) == len(set(names))
