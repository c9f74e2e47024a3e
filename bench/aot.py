"""Compile every Triton kernel for GPUs that are not there, and watch what it costs them.

    python -m bench.aot            compile, compare with the committed table, exit 1 where something is worse
    python -m bench.aot --write    compile and write the table, or another file that is named

Every case of every op, and every tile of the convolutions in every format, is compiled for sm_80, sm_90 and sm_100.
Each must fit the target's shared memory and spill no registers. With the Triton that wrote the table, nothing may be
missing or new, the theoretical occupancy may not fall, and neither accesses of 16 bytes nor matrix instructions may
disappear. The machine code is read of the large cases alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton

from bench.aot_cases import CONVOLUTIONS, compiled_cases
from bench.triton_compile import SHARED_PER_BLOCK, TARGETS, Compiled, compile_case, list_case
from fastlocal import kernels

TABLE = Path(__file__).parent / "results" / "aot" / "kernels.csv"
KEY = ("op", "kernel", "configuration", "target")
COLUMNS = (
    *KEY,
    "case",
    "num_warps",
    "num_stages",
    "registers",
    "shared_bytes",
    "spilled_bytes",
    "occupancy",
    "products",
    "loads_128",
    "loads_narrower",
    "stores_128",
    "triton",
)
WIDE_LOAD, WIDE_STORE = r"LDG\.E.*\.128|LDGSTS.*\.128|UTMALDG", r"STG\.E.*\.128|UTMASTG"
Row = dict[str, str]


def row(compiled: Compiled) -> Row:
    """A line of the table."""
    accesses = dict.fromkeys(("loads_128", "loads_narrower", "stores_128"), "")
    if compiled.sass is not None:
        wide = compiled.count(WIDE_LOAD)
        accesses = {
            "loads_128": str(wide),
            "loads_narrower": str(compiled.count("LDG|UTMALDG") - wide),
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
    return {name: str(values[name]) for name in COLUMNS}


def compile_op(op: str, target: int, most: int | None) -> list[Row]:
    """The lines of one op on one target; with `most`, those of the first cases that have so many of each kernel."""
    seen: dict[str, str] = {}
    return [
        row(one)
        for case, every_tile in compiled_cases(op)
        for one in compile_case(op, case, target, seen, most, every_tile=every_tile, disassemble=case.large)
    ]


def listed(op: str, target: int) -> set[tuple[str, ...]]:
    """The KEYs of what `compile_op` compiles, which takes much less time to say."""
    return {
        (op, kernel, configuration, f"sm_{target}")
        for case, every_tile in compiled_cases(op)
        for kernel, configuration in list_case(op, case, target, every_tile=every_tile)
    }


def key(line: Row) -> tuple[str, ...]:
    return tuple(line[column] for column in KEY)


def faults(rows: Sequence[Row]) -> list[str]:
    """What no kernel may do."""
    found = []
    for line in rows:
        limit = SHARED_PER_BLOCK[int(line["target"].removeprefix("sm_"))]
        if int(line["shared_bytes"]) > limit:
            found.append(f"{name(line)} takes {line['shared_bytes']} bytes of shared memory, of {limit}")
        if int(line["spilled_bytes"]):
            found.append(f"{name(line)} spills {line['spilled_bytes']} bytes of registers")
    return found


def regressions(rows: Sequence[Row], table: Sequence[Row], *, complete: bool = True) -> list[str]:
    """Where rows are worse than those that the same Triton left in the table, or not the same ones.

    complete: rows are all that there are of their ops and targets
    """
    versions = {line["triton"] for line in table}
    before, now = ({key(line): line for line in lines} for lines in (table, rows))
    found = []
    for place, line in now.items():
        old = before.get(place)
        if line["triton"] not in versions:
            continue
        if old is None:
            found.append(f"{name(line)} is not in the table; write it anew with --write: {line['configuration']}")
            continue
        if float(line["occupancy"]) < float(old["occupancy"]):
            found.append(f"{name(line)} has occupancy {line['occupancy']}, before {old['occupancy']}")
        if line["products"] != old["products"]:
            found.append(f"{name(line)} has products by {line['products'] or 'none'}, before {old['products']}")
        for column in ("loads_128", "stores_128"):
            if int(old[column] or 0) and not int(line[column] or 0):
                found.append(f"{name(line)} has lost its {column}")
    compiled = {(line["op"], line["target"], line["triton"]) for line in rows}
    for place, old in before.items():
        if complete and place not in now and (old["op"], old["target"], old["triton"]) in compiled:
            found.append(f"{name(old)} is in the table, but nothing compiles it: {old['configuration']}")
    return found


def name(line: Row) -> str:
    return f"{line['op']} ({line['case']}, {line['kernel']}) on {line['target']}"


def loads(line: Row) -> str:
    return f"loads {line['loads_128']} wide, {line['loads_narrower']} narrower" if line["loads_128"] else ""


def read_table(path: Path = TABLE) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", nargs="?", const=TABLE, type=Path, metavar="FILE", help="write the table, do not compare"
    )
    parser.add_argument("--most", type=int, help="compile at most about so many configurations of each kernel")
    parser.add_argument("--ops", nargs="+", default=kernels.TRITON_OPS, choices=kernels.TRITON_OPS, metavar="OP")
    parser.add_argument("--targets", nargs="+", type=int, default=TARGETS, choices=TARGETS, metavar="CAPABILITY")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    asked = parser.parse_args(arguments)

    os.environ.pop("TRITON_INTERPRET", None)
    longest_first = sorted(asked.ops, key=lambda op: (op not in CONVOLUTIONS, op))
    tasks = [(op, target, asked.most) for op in longest_first for target in asked.targets]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        rows = [line for lines in pool.map(compile_op, *zip(*tasks, strict=True)) for line in lines]
    rows.sort(key=key)
    for line in rows:
        print(
            f"{line['op']:<20} {line['case']:<44} {line['target']:<6} {line['kernel']:<22} "
            f"{line['registers']:>3} registers  {line['shared_bytes']:>6} B shared  occupancy {line['occupancy']}  "
            f"{line['products']:<8} {loads(line)}"
        )
    bad = faults(rows)
    if asked.write:
        before = read_table(asked.write) if asked.write.exists() else []
        made = {(op, f"sm_{target}") for op in asked.ops for target in asked.targets}
        kept = [line for line in before if (line["op"], line["target"]) not in made]
        write_table(asked.write, sorted(kept + rows, key=key))
    else:
        bad += regressions(rows, read_table(), complete=asked.most is None)
    for fault in bad:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} compiled, {len(bad)} at fault (Triton {triton.__version__})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
