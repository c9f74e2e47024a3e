"""Errors of the device, which are no fault of a kernel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.errors import TritonError

from fastlocal import kernels
from fastlocal.executors.tuning import conv_timing
from fastlocal.executors.tuning.conv_timing import conv_choices
from fastlocal.kernel_trial import jobs, kernels_tried, verdicts
from fastlocal.kernel_trial.jobs import TRITON
from fastlocal.kernel_trial.kernels_tried import try_triton
from fastlocal.kernel_trial.processes import Outcome
from tests.executors.problems import problem_of

CPU = torch.device("cpu")
ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError(ILLEGAL), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("size mismatch"), False),
        (TritonError("out of resource: shared memory"), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_faults_of_the_device_are_told_from_others(error: Exception, fault: bool) -> None:
    assert kernels.is_device_fault(error) is fault
    try:
        raise ValueError("while it was handled") from error
    except ValueError as outer:
        assert kernels.is_device_fault(outer) is fault


def test_timing_skips_what_fails_but_not_a_fault_of_the_device(
    own_cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def milliseconds(strategy: str, *given: Any) -> float:
        if strategy == "grouped":
            raise TritonError("out of resource")
        return {"loop": 2.0, "im2col": 1.0}[strategy]

    monkeypatch.setattr(conv_timing, "_milliseconds", milliseconds)
    choices = conv_choices(problem_of("batchnorm"), 4, 2)
    assert set(choices.by_layer.values()) == {"im2col"}

    def broken(*given: Any) -> float:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(conv_timing, "_milliseconds", broken)
    with pytest.raises(RuntimeError, match="illegal memory"):
        conv_choices(problem_of("batchnorm", dtype=torch.float32), 4, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_no_fault_of_a_kernel(tmp_path: Path) -> None:
    for device in ("cuda", "cuda:1"):
        said: list[dict[str, Any]] = []
        jobs.run(jobs.Job((TRITON, "client_sgd"), "triton", device), said.append)
        assert len(said) == 1 and said[0]["fault"].startswith("the device cannot be used from another process: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is not interpreted")
def test_a_device_that_cannot_be_reached_is_tried_once(
    own_cache_home: Path, triton_on_cpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fault(job: Any) -> Any:
        tries.append(job.ops)
        yield Outcome(TRITON, "fails on a kernel of one line: CUDA error: device is busy or unavailable", 1, 0.1)

    class Unreachable:
        def __enter__(self) -> Any:
            return SimpleNamespace(check=fault)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(kernels_tried, "Processes", Unreachable)
    assert [try_triton(CPU, ["client_sgd", "client_mean"]) for _ in range(2)] == [{}, {}]
    assert tries == [(TRITON, "client_sgd", "client_mean")] and kernels.refusals() == {}
    assert kernels.get("client_sgd", device=CPU).__module__.endswith("triton_kernel")
    assert not (own_cache_home / "verified.json").exists() or verdicts.known(CPU, "triton") == {}
