"""Kernels compiled for GPUs that are not there: they fit, spill nothing, and load 16 bytes at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import aot
from fastlocal import kernels
from fastlocal.kernels.case import cases

ROOT = Path(__file__).resolve().parents[2]

WIDE = {
    "client_sgd": (6, 4),
    "client_norm": (4, 0),
    "client_mean": (16, 4),
    "client_sgd_mean": (9, 4),
    "gather_augment": (0, 1),
}
"""Ops whose time is memory traffic, and how many loads and stores of 16 bytes one of two configurations has at least.

Rows of the means have to begin at multiples of 16 bytes for that; images are gathered byte by byte."""


def test_two_configurations_of_every_kernel(tmp_path: Path) -> None:
    """Compiled for sm_90 by a Python without the interpreter: they fit, spill nothing, and the widths are there."""
    table = tmp_path / "kernels.csv"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--targets", "90", "--most", "2", "--jobs", "1", "--write", str(table)]
    command = [sys.executable, "-m", "bench.aot", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = aot.read_table(table)
    assert {row["op"] for row in rows} == set(kernels.TRITON_OPS)
    for op, least in WIDE.items():
        found = [(int(row["loads_128"]), int(row["stores_128"])) for row in rows if row["op"] == op]
        assert len(found) == 2
        assert any(loads >= least[0] and stores >= least[1] for loads, stores in found), (op, found)


ONE_POSITION = """
from bench import triton_compile
from fastlocal.kernels.case import cases

for op in ("norm_act", "norm_act_backward"):
    small = [case for case in cases(op) if case.name == "7 groups 2x3x7 silu fp32"]
    print(op, sum(1 for case in small for _ in triton_compile.compile_case(op, case, 90, {})))
"""


def test_norms_of_one_position_compile() -> None:
    """Triton makes a constant of an argument that is 1, which the interpreter does not show."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", ONE_POSITION]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(line.split()[1]) > 0 for line in done.stdout.splitlines()) and len(done.stdout.splitlines()) == 2


def test_the_committed_table_is_complete() -> None:
    table = aot.read_table()
    assert {row["op"] for row in table} == set(kernels.TRITON_OPS)
    assert {row["target"] for row in table} == {"sm_80", "sm_90", "sm_100"}
    assert aot.faults(table) == []
    known = {(op, case.name) for op in kernels.TRITON_OPS for case in cases(op) if case.large}
    assert {(row["op"], row["case"]) for row in table} <= known


def test_every_op_with_a_kernel_has_cases_of_the_size_that_matters() -> None:
    assert [op for op in kernels.TRITON_OPS if not any(case.large for case in cases(op))] == []


def test_what_is_worse_is_found() -> None:
    old = {
        **dict.fromkeys(aot.COLUMNS, "0"),
        "target": "sm_90",
        "occupancy": "0.500",
        "loads_128": "4",
        "triton": "3.9.0",
    }
    assert aot.regressions([old], [old]) == []
    assert "occupancy 0.250, before 0.500" in aot.regressions([{**old, "occupancy": "0.250"}], [old])[0]
    assert "lost its loads_128" in aot.regressions([{**old, "loads_128": "0"}], [old])[0]
    assert "not in the table" in aot.regressions([{**old, "case": "new"}], [old])[0]
    # another compiler may choose otherwise, within what every kernel must keep
    assert aot.regressions([{**old, "occupancy": "0.250", "triton": "3.10.0"}], [old]) == []
    assert "spills 8 bytes" in aot.faults([{**old, "spilled_bytes": "8"}])[0]
    assert "shared memory" in aot.faults([{**old, "shared_bytes": str(228 * 1024)}])[0]
