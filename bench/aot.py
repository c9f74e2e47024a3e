"""Compile every Triton kernel for GPUs that are not there, and watch what it costs them.

    python -m bench.aot            compile, compare with the committed table, exit 1 where something is worse
    python -m bench.aot --write    compile and write the table, or another file that is named

Every large case of every op is compiled for sm_80, sm_90 and sm_100. Each must fit the target's shared memory and spill
no registers. With the Triton that wrote the table, the theoretical occupancy may not fall and the accesses of 16 bytes
may not disappear.
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

from bench.triton_compile import SHARED_PER_BLOCK, TARGETS, Compiled, compile_case
from fastlocal import kernels
from fastlocal.kernels.case import cases

TABLE = Path(__file__).parent / "results" / "aot" / "kernels.csv"
KEY = ("op", "case", "kernel", "configuration", "target")
COLUMNS = (
    *KEY,
    "num_warps",
    "num_stages",
    "registers",
    "shared_bytes",
    "spilled_bytes",
    "occupancy",
    "loads_128",
    "loads_narrower",
    "stores_128",
    "tensor_core",
    "triton",
)
WIDE_LOAD, WIDE_STORE = r"LDG\.E.*\.128|LDGSTS.*\.128|UTMALDG", r"STG\.E.*\.128|UTMASTG"
TENSOR_CORE = r"HMMA|HGMMA|UTC\w*MMA"
Row = dict[str, str]


def row(compiled: Compiled) -> Row:
    """A line of the table."""
    wide = compiled.count(WIDE_LOAD)
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
        "loads_128": wide,
        "loads_narrower": compiled.count("LDG|UTMALDG") - wide,
        "stores_128": compiled.count(WIDE_STORE),
        "tensor_core": compiled.count(TENSOR_CORE),
        "triton": triton.__version__,
    }
    return {name: str(values[name]) for name in COLUMNS}


def compile_op(op: str, target: int, most: int | None) -> list[Row]:
    """The lines of one op on one target; with `most`, those of the first cases that have so many of each kernel."""
    seen: dict[str, str] = {}
    return [row(one) for case in cases(op) if case.large for one in compile_case(op, case, target, seen, most)]


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


def regressions(rows: Sequence[Row], table: Sequence[Row]) -> list[str]:
    """Where rows are worse than those that the same Triton left in the table, or missing there."""
    versions = {line["triton"] for line in table}
    before = {tuple(line[column] for column in KEY): line for line in table}
    found = []
    for line in rows:
        old = before.get(tuple(line[column] for column in KEY))
        if line["triton"] not in versions:
            continue
        if old is None:
            found.append(f"{name(line)} is not in the table; write it anew with --write")
            continue
        if float(line["occupancy"]) < float(old["occupancy"]):
            found.append(f"{name(line)} has occupancy {line['occupancy']}, before {old['occupancy']}")
        for column in ("loads_128", "stores_128", "tensor_core"):
            if int(old[column]) and not int(line[column]):
                found.append(f"{name(line)} has lost its {column}")
    return found


def name(line: Row) -> str:
    return f"{line['op']} ({line['case']}, {line['kernel']}) on {line['target']}"


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
    tasks = [(op, target, asked.most) for op in asked.ops for target in asked.targets]
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        rows = [line for lines in pool.map(compile_op, *zip(*tasks, strict=True)) for line in lines]
    rows.sort(key=lambda line: [line[column] for column in ("op", "case", "kernel", "configuration")])
    for line in rows:
        print(
            f"{line['op']:<20} {line['case']:<44} {line['target']:<6} {line['kernel']:<22} "
            f"{line['registers']:>3} registers  {line['shared_bytes']:>6} B shared  occupancy {line['occupancy']}  "
            f"loads {line['loads_128']} wide, {line['loads_narrower']} narrower"
        )
    bad = faults(rows)
    if asked.write:
        before = read_table(asked.write) if asked.write.exists() else []
        kept = [line for line in before if line["op"] not in asked.ops]
        write_table(asked.write, sorted(kept + rows, key=lambda line: [line[column] for column in KEY]))
    else:
        bad += regressions(rows, read_table())
    for fault in bad:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} compiled, {len(bad)} at fault (Triton {triton.__version__})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
