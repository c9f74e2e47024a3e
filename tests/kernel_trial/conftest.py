"""Kernels are refused in one test only, and Triton is taken for one of a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastlocal import kernels
from fastlocal.kernel_trial import kernels_tried


@pytest.fixture(autouse=True)
def nothing_refused() -> Iterator[None]:
    yield
    for op, backend in list(kernels.refusals()):
        kernels.accept(op, backend)
    kernels_tried._results.clear()


@pytest.fixture
def triton_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "DEVICES", ("cuda", "cpu"))
