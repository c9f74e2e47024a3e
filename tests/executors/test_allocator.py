"""Buffers of a round are reused by the next one, so that no time goes into fresh memory."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest

from fastlocal.config.recipes import default
from fastlocal.runs.from_config import run_from_config
from tests.executors.problems import start


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries than glibc are left as they are")
def test_stacked_rounds_take_no_fresh_memory(tmp_path: Path) -> None:
    """One gradient of 1,000 perceptrons is 37 MiB, 9,400 pages of 4 KiB."""
    config = default().with_values(dataset="digits", executor="stacked", device="cpu", log_pth=str(tmp_path / "run"))
    prepared = run_from_config(config, lambda text: None)
    stack, plan = start(prepared.problem, clients=1000)
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        prepared.executor.run_round(stack, plan)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < 1000, "the first rounds may still find their places"
