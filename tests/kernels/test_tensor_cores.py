"""The convolutions' machine code: products on Hopper's tensor cores in their inputs' format, 16 bytes at a time.

What is compiled here is what the installed Triton makes; the tables of tests.aot hold more, of every supported version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aot.tables import read_tables

ROOT = Path(__file__).resolve().parents[2]
OPS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")
COMPILED = (*((op, dtype, 90) for op in OPS for dtype in ("bf16", "fp32")), ("conv2d_clients", "bf16", 80))

# Deterministic algorithms leave one tile of each kernel to compile.
PROGRAM = """
import json
import torch
from tests.aot.triton_compile import compile_case
from fastlocal.kernels.case import cases
torch.use_deterministic_algorithms(True)
found = {}
for op, dtype, target in %r:
    case = next(case for case in cases(op) if case.name == f"32x32 64->64 3x3 on 8x8 last {dtype}")
    for compiled in compile_case(op, case, target, {}):
        found[f"{op} {dtype} {target}"] = compiled.sass
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def instructions() -> dict[str, dict[str, int]]:
    """Of all that is COMPILED, how often each memory and matrix instruction occurs."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM % (COMPILED,)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "operands"), [("bf16", "BF16"), ("fp32", "TF32")])
def test_products_are_hoppers_own(op: str, dtype: str, operands: str, instructions: dict[str, dict[str, int]]) -> None:
    names = instructions[f"{op} {dtype} 90"]
    assert any(name.startswith("HGMMA") and name.endswith(operands) for name in names), names
    assert not any(name.startswith("HMMA") for name in names), names


@pytest.mark.parametrize(
    ("op", "dtype", "target"),
    # TF32 products read both operands along the sum, which for filters runs across the channels: fetched one by one
    [one for one in COMPILED if one[:2] != ("conv2d_clients_weight_grad", "fp32")],
)
def test_images_are_fetched_16_bytes_at_a_time(
    op: str, dtype: str, target: int, instructions: dict[str, dict[str, int]]
) -> None:
    found = instructions[f"{op} {dtype} {target}"]
    loads = {name for name in found if name.startswith(("LDG.", "LDGSTS."))}
    assert loads and all(name.endswith(".128") for name in loads), loads


PRODUCTS = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


def test_every_compiled_tile_uses_its_targets_tensor_cores() -> None:
    rows = [row for row in read_tables() if row["op"] in OPS and "PRECISION=" in row["configuration"]]
    assert {row["target"] for row in rows} == set(PRODUCTS)
    other = [row for row in rows if row["products"] != PRODUCTS[row["target"]]]
    assert other == []
