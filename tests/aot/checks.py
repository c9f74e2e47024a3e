"""Table rows of compiled kernels, the bounds that every kernel keeps, and the comparison with the committed tables."""

from __future__ import annotations

from collections.abc import Sequence

import triton

from tests.aot.cases import CONVOLUTIONS, cases_to_compile
from tests.aot.tables import COLUMNS, Row, key, name
from tests.aot.triton_compile import SHARED_PER_BLOCK, CompiledKernel, compile_case, list_case

LOAD = r"LDG\.|LDGSTS\.|UTMALDG"  # LDGDEPBAR waits for loads and is none itself
WIDE_LOAD, WIDE_STORE = r"LDG\.E.*\.128|LDGSTS.*\.128|UTMALDG", r"STG\.E.*\.128|UTMASTG"


def table_row(compiled: CompiledKernel) -> Row:
    """Return the table row of a kernel; counts of accesses are empty where the machine code was not read."""
    accesses = dict.fromkeys(("loads_128", "loads_narrower", "stores_128"), "")
    if compiled.sass is not None:
        wide = compiled.count(WIDE_LOAD)
        accesses = {
            "loads_128": str(wide),
            "loads_narrower": str(compiled.count(LOAD) - wide),
            "stores_128": str(compiled.count(WIDE_STORE)),
        }
    values = {
        "op": compiled.op,
        "case": compiled.case,
        "kernel": compiled.kernel,
        "configuration": compiled.configuration,
        "target": f"sm_{compiled.target}",
        "num_warps": compiled.num_warps,
        "num_stages": compiled.num_stages,
        "registers": compiled.registers,
        "shared_bytes": compiled.shared,
        "spilled_bytes": compiled.stack,
        "occupancy": f"{compiled.occupancy:.3f}",
        "products": compiled.products,
        "triton": triton.__version__,
        **accesses,
    }
    return {column: str(values[column]) for column in COLUMNS}


def compile_op(op: str, target: int, limit: int | None) -> list[Row]:
    """Compile one op for one target.

    Args:
        op: Name of the op.
        target: Compute capability, times ten.
        limit: Stop at about this many configurations of each kernel; None compiles all.
    """
    seen: dict[str, str] = {}
    return [
        table_row(compiled)
        for case, every_tile in cases_to_compile(op)
        for compiled in compile_case(op, case, target, seen, limit, every_tile=every_tile, disassemble=case.large)
    ]


def list_op(op: str, target: int) -> set[tuple[str, ...]]:
    """Return the table keys of everything that `compile_op` compiles, without compiling it."""
    return {
        (op, kernel, configuration, f"sm_{target}", triton.__version__)
        for case, every_tile in cases_to_compile(op)
        for kernel, configuration in list_case(op, case, target, every_tile=every_tile)
    }


def faults(rows: Sequence[Row]) -> list[str]:
    """Return a message for each row that takes too much shared memory, spills, or loads too narrowly."""
    messages = []
    for row in rows:
        limit = SHARED_PER_BLOCK[int(row["target"].removeprefix("sm_"))]
        if int(row["shared_bytes"]) > limit:
            messages.append(f"{name(row)} takes {row['shared_bytes']} bytes of shared memory, of {limit}")
        if int(row["spilled_bytes"]):
            messages.append(f"{name(row)} spills {row['spilled_bytes']} bytes of registers")
        if int(row["loads_narrower"] or 0) and row["op"] in CONVOLUTIONS and loads_are_wide(row):
            messages.append(f"{name(row)} has {row['loads_narrower']} loads of less than 16 bytes")
    return messages


def loads_are_wide(row: Row) -> bool:
    """Return True if the convolution must load 16 bytes at a time.

    That holds where channels lie last and are multiples of 16, and each thread has 16 bytes of both operands of a
    product. The fp32 gradient of the filters is an exception: TF32 products read operands along the sum, which runs
    across the channels there.
    """
    constants = dict(word.split("=", 1) for word in row["configuration"].split() if "=" in word)
    half = "*fp32" not in row["configuration"].split()[0]
    strides = ("grad" if "grad" in row["op"] else "y", "dx" if row["op"].endswith("input_grad") else "x")
    smaller = min(int(constants["ROWS"]), int(constants["COLUMNS"])) * int(constants["DEPTH"]) * (2 if half else 4)
    return (
        all(constants.get(f"{images}_stride_channel") == "1" for images in strides)
        and int(constants["IN"]) % 16 == int(constants["OUT"]) % 16 == 0
        and smaller >= 16 * 32 * int(row["num_warps"])
        and constants.get("HAS_BIAS") != "True"
        and (half or not row["op"].endswith("weight_grad"))
    )


def regressions(rows: Sequence[Row], table: Sequence[Row], *, complete: bool = True) -> list[str]:
    """Return a message for each difference for the worse from the table of the same Triton version.

    Args:
        rows: New rows.
        table: Rows of the committed tables, of all versions.
        complete: True if `rows` holds everything of its ops and targets, so that a missing row is a difference.
    """
    versions = {row["triton"] for row in table}
    before, now = ({key(row): row for row in lines} for lines in (table, rows))
    messages = []
    for place, row in now.items():
        old = before.get(place)
        if row["triton"] not in versions:
            continue
        if old is None:
            messages.append(f"{name(row)} is not in the table; write it anew with --write: {row['configuration']}")
            continue
        if float(row["occupancy"]) < float(old["occupancy"]):
            messages.append(f"{name(row)} has occupancy {row['occupancy']}, before {old['occupancy']}")
        if row["products"] != old["products"]:
            messages.append(f"{name(row)} has products by {row['products'] or 'none'}, before {old['products']}")
        for column in ("loads_128", "stores_128"):
            if int(old[column] or 0) and not int(row[column] or 0):
                messages.append(f"{name(row)} has lost its {column}")
        if old["loads_narrower"] == "0" and int(row["loads_narrower"] or 0):
            messages.append(f"{name(row)} has {row['loads_narrower']} loads of less than 16 bytes, before none")
    compiled = {(row["op"], row["target"], row["triton"]) for row in rows}
    for place, old in before.items():
        if complete and place not in now and (old["op"], old["target"], old["triton"]) in compiled:
            messages.append(f"{name(old)} is in the table, but nothing compiles it: {old['configuration']}")
    return messages
