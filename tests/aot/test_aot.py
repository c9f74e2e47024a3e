"""Kernels compiled for GPUs that are not there: they fit, spill nothing, and load 16 bytes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from fastlocal import kernels
from fastlocal.kernels.case import cases
from fastlocal.kernels.conv2d_clients import triton_tiles
from tests.aot import checks
from tests.aot.cases import CONVOLUTIONS
from tests.aot.tables import COLUMNS, Row, key, read_tables, write_tables

ROOT = Path(__file__).resolve().parents[2]

WIDE = {
    "client_sgd": (6, 4),
    "client_adamw": (8, 6),
    "client_norm": (4, 0),
    "client_mean": (16, 4),
    "client_sgd_mean": (9, 4),
    "server_step": (6, 2),
    "gather_augment": (0, 1),
    "norm_act": (1, 1),
    "norm_act_backward": (2, 1),
}
"""Ops whose time is memory traffic, and how many loads and stores of 16 bytes one of their kernels has at least.

Rows of the means have to begin at multiples of 16 bytes for that; images are gathered byte by byte."""


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return read_tables()


LAYERS = (
    *((op, f"32x32 64->64 3x3 on 8x8 last {dtype}", 90) for op in CONVOLUTIONS for dtype in ("bf16", "fp32")),
    ("conv2d_clients", "32x32 64->64 3x3 on 8x8 last bf16", 80),
    ("conv2d_clients", "32x32 16->16 3x3 on 32x32 last statistics bf16", 90),
)
"""Cases of convolutions and their targets."""
OPERANDS = {"bf16": "BF16", "fp32": "TF32"}
PROGRAM = """
import json, sys
from fastlocal import kernels
from fastlocal.kernels.case import cases
from tests.aot.__main__ import main
from tests.aot.cases import CONVOLUTIONS
from tests.aot.checks import list_op, table_row
from tests.aot.triton_compile import TARGETS, compile_case

# before any is compiled, as Triton asks once for each
listed = [list(key[:-1]) for op in kernels.TRITON_OPS for target in TARGETS for key in list_op(op, target)]
others = [op for op in kernels.TRITON_OPS if op not in CONVOLUTIONS]
if main(["--targets", "90", "--most", "1", "--jobs", "1", "--ops", *others, "--write", sys.argv[1]]):
    sys.exit(1)

def compiled(op, name, target, **options):
    (case,) = (case for case in cases(op) if case.name == name)
    return list(compile_case(op, case, target, {}, **options))

layers = [[table_row(one), one.sass] for layer in %r for one in compiled(*layer, every_tile=False)]
one_position = [len(compiled(op, "7 groups 2x3x7 silu fp32", 90)) for op in ("norm_act", "norm_act_backward")]
print(json.dumps([listed, layers, one_position]))
"""


class Compiled(NamedTuple):
    """Programs that the installed Triton compiles in a Python without the interpreter, which the tests have chosen.

    Attributes:
        others: Rows of the first configuration of every kernel but those of convolutions.
        layers: Rows of the convolutions, and how often each instruction occurs.
        one_position: Number of kernels of norms of one position.
        listed: Keys of all that can be compiled.
    """

    others: list[Row]
    layers: list[tuple[Row, dict[str, int]]]
    one_position: list[int]
    listed: set[tuple[str, ...]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("tables")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM % (LAYERS,), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    listed, layers, one_position = json.loads(done.stdout.splitlines()[-1])
    return Compiled(read_tables(folder), layers, one_position, {tuple(key) for key in listed})


def test_every_kernel(compiled: Compiled) -> None:
    """They fit, spill nothing, and the widths are there."""
    rows = [*compiled.others, *(row for row, _ in compiled.layers)]
    assert checks.faults(rows) == []
    assert {row["op"] for row in rows} == set(kernels.TRITON_OPS)
    assert {row["kernel"] for row in rows} == {row["kernel"] for row in read_tables()}
    for op, least in WIDE.items():
        found = [(int(row["loads_128"]), int(row["stores_128"])) for row in rows if row["op"] == op]
        assert any(loads >= least[0] and stores >= least[1] for loads, stores in found), (op, found)


def test_products_are_in_the_inputs_format_and_images_are_fetched_16_bytes_at_a_time(compiled: Compiled) -> None:
    """On Hopper by its own instructions; the tables hold more, of every supported version of Triton."""
    rows = [(row, names) for row, names in compiled.layers if row["kernel"] != "_combine_kernel"]
    assert len(rows) == len(LAYERS)
    for (op, case, target), (row, names) in zip(LAYERS, rows, strict=True):
        dtype = case.split()[-1]
        assert (row["op"], row["case"]) == (op, case)
        if target == 90:
            assert any(name.startswith("HGMMA") and name.endswith(OPERANDS[dtype]) for name in names), names
            assert not any(name.startswith("HMMA") for name in names), names
        # TF32 products read both operands along the sum, which for filters runs across the channels: one by one
        if (op, dtype) != ("conv2d_clients_weight_grad", "fp32") and "statistics" not in case:
            loads = {name for name in names if name.startswith(("LDG.", "LDGSTS."))}
            assert loads and all(name.endswith(".128") for name in loads), loads


PRODUCTS = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


def test_every_compiled_tile_uses_its_targets_tensor_cores(table: list[Row]) -> None:
    rows = [row for row in table if row["op"] in CONVOLUTIONS and "PRECISION=" in row["configuration"]]
    assert {row["target"] for row in rows} == set(PRODUCTS)
    assert [row for row in rows if row["products"] != PRODUCTS[row["target"]]] == []


def test_norms_of_one_position_compile(compiled: Compiled) -> None:
    """Triton makes a constant of an argument that is 1, which the interpreter does not show."""
    assert all(number > 0 for number in compiled.one_position)


def test_the_tables_hold_what_is_compiled_and_nothing_else(table: list[Row], compiled: Compiled) -> None:
    """Of every version of Triton, which all tell the same configurations apart."""
    assert checks.faults(table) == []
    keys = [key(row) for row in table]
    assert len(set(keys)) == len(keys)
    for version in {row["triton"] for row in table}:
        held = {place[:-1] for place in keys if place[-1] == version}
        assert sorted(held - compiled.listed) == [], f"in the table of {version}, but not compiled"
        assert sorted(compiled.listed - held) == [], f"compiled, but not in the table of {version}"


FORMATS = {
    "two bytes": ("bf16", "tf32", {"itemsize": 2, "split": False}),
    "tf32": ("fp32", "tf32", {"itemsize": 4, "split": False}),
    "three of tf32": ("fp32", "tf32x3", {"itemsize": 4, "split": True}),
}


@pytest.mark.parametrize("op", CONVOLUTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_tile_that_can_be_chosen_is_in_the_table(op: str, name: str, table: list[Row]) -> None:
    dtype, precision, options = FORMATS[name]
    tiles = triton_tiles.TERMS_BY_CHANNELS if op.endswith("weight_grad") else triton_tiles.PIXELS_BY_CHANNELS
    phases = (False, True) if op.endswith("input_grad") else (False,)
    choosable = {
        tuple(tile.kwargs.values())
        for columns, depth, narrow, apart in product((16, 32, 64, 128), (16, 32, 64, 4096), (False, True), phases)
        for tile in triton_tiles.fitting_tiles(tiles, columns, depth, narrow=narrow, phases=apart, **options)
    }
    for target in ("sm_80", "sm_90", "sm_100"):
        compiled = set()
        for row in table:
            words = dict(word.split("=", 1) for word in row["configuration"].split() if "=" in word)
            if (row["op"], row["target"]) == (op, target) and words.get("PRECISION") == precision:
                if f"*{dtype}" in row["configuration"]:
                    compiled.add(tuple(int(words[size]) for size in ("ROWS", "COLUMNS", "DEPTH")))
        assert choosable - compiled == set(), target


def test_the_table_holds_every_dtype_and_option(table: list[Row]) -> None:
    forward = [row["configuration"] for row in table if row["op"] == "conv2d_clients"]
    for words in (
        "x_ptr:*fp16",
        "x_ptr:*bf16",
        "x_ptr:*fp32",
        "HAS_BIAS=True",
        "HAS_STATISTICS=True",
        "PRECISION=tf32x3",
    ):
        assert any(words in configuration for configuration in forward), words


def test_every_op_with_a_kernel_has_cases_of_the_size_that_matters() -> None:
    assert [op for op in kernels.TRITON_OPS if not any(case.large for case in cases(op))] == []


def test_what_is_worse_is_found() -> None:
    old = {
        **dict.fromkeys(COLUMNS, "0"),
        "target": "sm_90",
        "occupancy": "0.500",
        "loads_128": "4",
        "products": "wgmma",
        "triton": "3.9.0",
    }
    assert checks.regressions([old], [old]) == []
    assert "occupancy 0.250, before 0.500" in checks.regressions([{**old, "occupancy": "0.250"}], [old])[0]
    assert "lost its loads_128" in checks.regressions([{**old, "loads_128": "0"}], [old])[0]
    assert "8 loads of less than 16 bytes" in checks.regressions([{**old, "loads_narrower": "8"}], [old])[0]
    assert "products by mma, before wgmma" in checks.regressions([{**old, "products": "mma"}], [old])[0]
    new, gone = {**old, "configuration": "new"}, {**old, "configuration": "gone"}
    assert "not in the table" in checks.regressions([old, new], [old])[0]
    assert "nothing compiles it: gone" in checks.regressions([old], [old, gone])[0]
    assert checks.regressions([old], [old, gone], complete=False) == []
    assert checks.regressions([old], [old, {**gone, "op": "another"}]) == []  # that op was not asked for
    # another compiler may choose otherwise, within what every kernel must keep
    assert checks.regressions([{**old, "occupancy": "0.250", "triton": "3.10.0"}], [old]) == []
    both = [old, {**old, "triton": "3.10.0", "occupancy": "0.250"}]
    assert "before 0.500" in checks.regressions([{**old, "occupancy": "0.250"}], both)[0]
    assert "spills 8 bytes" in checks.faults([{**old, "spilled_bytes": "8"}])[0]
    assert "shared memory" in checks.faults([{**old, "shared_bytes": str(228 * 1024)}])[0]


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    row = {**dict.fromkeys(COLUMNS, "0"), "op": "op", "triton": "3.8.0"}
    rows = [row, {**row, "target": "1"}, {**row, "configuration": "1"}, {**row, "triton": "3.9.0", "registers": "9"}]
    write_tables(tmp_path, rows)
    assert read_tables(tmp_path) == sorted(rows, key=key)
