"""Compile every Triton kernel for GPUs that are not there, and watch what it costs them.

    python -m bench.aot            compile, compare with the committed table, exit 1 where something is worse
    python -m bench.aot --write    compile and write the table, or that in another folder

Every case of every op, and every tile of the convolutions in every format, is compiled for sm_80, sm_90 and sm_100.
With any Triton, each must fit the target's shared memory and spill no registers, and convolutions of channels-last
images must load 16 bytes at a time.

There is a table for each supported version of Triton, which the same version is compared with: nothing may be missing
or new, the theoretical occupancy may not fall, neither accesses of 16 bytes nor matrix instructions may disappear, and
no narrower loads may appear where there were none. The machine code is read of the large cases alone. `--write`
replaces the rows of the Triton that runs. So after a change to what is compiled, write the table with each version:
install it with `pip install --no-deps triton==...` in an environment of its own, where any torch does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton

from bench.aot_cases import CONVOLUTIONS, compiled_cases
from bench.aot_tables import COLUMNS, TABLES, Row, key, name, read_tables, write_tables
from bench.triton_compile import SHARED_PER_BLOCK, TARGETS, Compiled, compile_case, list_case
from fastlocal import kernels

LOAD = r"LDG\.|LDGSTS\.|UTMALDG"  # and not LDGDEPBAR, which waits for loads
WIDE_LOAD, WIDE_STORE = r"LDG\.E.*\.128|LDGSTS.*\.128|UTMALDG", r"STG\.E.*\.128|UTMASTG"


def row(compiled: Compiled) -> Row:
    """A line of the table."""
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
    """The keys of what `compile_op` compiles, which takes much less time to say."""
    return {
        (op, kernel, configuration, f"sm_{target}", triton.__version__)
        for case, every_tile in compiled_cases(op)
        for kernel, configuration in list_case(op, case, target, every_tile=every_tile)
    }


def faults(rows: Sequence[Row]) -> list[str]:
    """What no kernel may do."""
    found = []
    for line in rows:
        limit = SHARED_PER_BLOCK[int(line["target"].removeprefix("sm_"))]
        if int(line["shared_bytes"]) > limit:
            found.append(f"{name(line)} takes {line['shared_bytes']} bytes of shared memory, of {limit}")
        if int(line["spilled_bytes"]):
            found.append(f"{name(line)} spills {line['spilled_bytes']} bytes of registers")
        if int(line["loads_narrower"] or 0) and line["op"] in CONVOLUTIONS and loads_are_wide(line):
            found.append(f"{name(line)} has {line['loads_narrower']} loads of less than 16 bytes")
    return found


def loads_are_wide(line: Row) -> bool:
    """Return True if the convolution must load 16 bytes at a time.

    Channels lie last and are multiples of 16, and a thread has 16 bytes of both operands of a product. In fp32 the
    filters' gradient is an exception: TF32 products read operands along the sum, which there runs across the channels.
    """
    words = dict(word.split("=", 1) for word in line["configuration"].split() if "=" in word)
    half = "*fp32" not in line["configuration"].split()[0]
    strides = ("grad" if "grad" in line["op"] else "y", "dx" if line["op"].endswith("input_grad") else "x")
    smaller = min(int(words["ROWS"]), int(words["COLUMNS"])) * int(words["DEPTH"]) * (2 if half else 4)
    return (
        all(words.get(f"{images}_stride_channel") == "1" for images in strides)
        and int(words["IN"]) % 16 == int(words["OUT"]) % 16 == 0
        and smaller >= 16 * 32 * int(line["num_warps"])
        and words.get("HAS_BIAS") != "True"
        and (half or not line["op"].endswith("weight_grad"))
    )


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
        if old["loads_narrower"] == "0" and int(line["loads_narrower"] or 0):
            found.append(f"{name(line)} has {line['loads_narrower']} loads of less than 16 bytes, before none")
    compiled = {(line["op"], line["target"], line["triton"]) for line in rows}
    for place, old in before.items():
        if complete and place not in now and (old["op"], old["target"], old["triton"]) in compiled:
            found.append(f"{name(old)} is in the table, but nothing compiles it: {old['configuration']}")
    return found


def loads(line: Row) -> str:
    return f"loads {line['loads_128']} wide, {line['loads_narrower']} narrower" if line["loads_128"] else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", nargs="?", const=TABLES, type=Path, metavar="FOLDER", help="write the table, do not compare"
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
        made = {(op, f"sm_{target}", triton.__version__) for op in asked.ops for target in asked.targets}
        before = read_tables(asked.write)
        kept = [line for line in before if (line["op"], line["target"], line["triton"]) not in made]
        write_tables(asked.write, kept + rows)
    else:
        table = read_tables()
        bad += regressions(rows, table, complete=asked.most is None)
        if not any(line["triton"] == triton.__version__ for line in table):
            print(f"There is no table of Triton {triton.__version__}: nothing to compare with", file=sys.stderr)
    for fault in bad:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} compiled, {len(bad)} at fault (Triton {triton.__version__})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
