"""The convolutions' machine code: products on Hopper's tensor cores in their inputs' format, 16 bytes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import aot

ROOT = Path(__file__).resolve().parents[2]
OPS = ("conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad")

# Deterministic algorithms leave one tile of each kernel to compile.
PROGRAM = """
import json
import torch
from bench.triton_compile import compile_case
from fastlocal.kernels.case import cases
torch.use_deterministic_algorithms(True)
found = {}
for op in %r:
    for dtype in ("bf16", "fp32"):
        case = next(case for case in cases(op) if case.name == f"32x32 64->64 3x3 on 8x8 last {dtype}")
        for compiled in compile_case(op, case, 90, {}):
            found[f"{op} {dtype}"] = compiled.sass
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def instructions() -> dict[str, dict[str, int]]:
    """Of every op and dtype, how often each memory and matrix instruction occurs in what is compiled for sm_90."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM % (OPS,)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "operands"), [("bf16", "BF16"), ("fp32", "TF32")])
def test_products_are_hoppers_own(op: str, dtype: str, operands: str, instructions: dict[str, dict[str, int]]) -> None:
    names = instructions[f"{op} {dtype}"]
    assert any(name.startswith("HGMMA") and name.endswith(operands) for name in names), names
    assert not any(name.startswith("HMMA") for name in names), names


@pytest.mark.parametrize(
    ("op", "dtype"),
    # TF32 products read both operands along the sum, which for filters runs across the channels: fetched one by one
    [(op, dtype) for op in OPS for dtype in ("bf16", "fp32") if (op, dtype) != ("conv2d_clients_weight_grad", "fp32")],
)
def test_images_are_fetched_16_bytes_at_a_time(op: str, dtype: str, instructions: dict[str, dict[str, int]]) -> None:
    loads = {name for name in instructions[f"{op} {dtype}"] if name.startswith(("LDG.", "LDGSTS."))}
    assert loads and all(name.endswith(".128") for name in loads), loads


PRODUCTS = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


def test_every_compiled_tile_uses_its_targets_tensor_cores() -> None:
    rows = [row for row in aot.read_table() if row["op"] in OPS]
    assert {row["target"] for row in rows} == set(PRODUCTS)
    other = [row for row in rows if row["products"] != PRODUCTS[row["target"]]]
    assert other == []
