"""Compile every Triton kernel for GPUs that are not present, and check its registers, memory and loads.

    python -m tests.aot            compile, compare with the committed tables, exit with 1 where something is worse
    python -m tests.aot --write    compile and write the table, or the one in another folder

Every case of every op, and every tile of the convolutions in every format, is compiled for sm_80, sm_90 and sm_100.
With any Triton version, each kernel must fit the target's shared memory and spill no registers, and convolutions of
channels-last images must load 16 bytes at a time.

There is a table for each supported Triton version. Against the table of the same version, no configuration may be
missing or new, the theoretical occupancy may not fall, 16-byte accesses and matrix instructions may not disappear, and
no narrower loads may appear. The machine code is read of the large cases only. `--write` replaces the rows of the
running Triton version. After a change to a kernel, write the table with each version: install it with
`pip install --no-deps triton==...` in a separate environment, with any torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import triton

from fastlocal import kernels
from tests.aot.cases import CONVOLUTIONS
from tests.aot.checks import compile_op, faults, regressions
from tests.aot.tables import TABLES, Row, key, read_tables, write_tables
from tests.aot.triton_compile import TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a line for each kernel, and write or compare; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.aot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", nargs="?", const=TABLES, type=Path, metavar="FOLDER", help="write the table, do not compare"
    )
    parser.add_argument("--most", type=int, help="compile at most about this many configurations of each kernel")
    parser.add_argument("--ops", nargs="+", default=kernels.TRITON_OPS, choices=kernels.TRITON_OPS, metavar="OP")
    parser.add_argument("--targets", nargs="+", type=int, default=TARGETS, choices=TARGETS, metavar="CAPABILITY")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    options = parser.parse_args(arguments)

    os.environ.pop("TRITON_INTERPRET", None)
    longest_first = sorted(options.ops, key=lambda op: (op not in CONVOLUTIONS, op))
    tasks = [(op, target, options.most) for op in longest_first for target in options.targets]
    with ExitStack() as stack:
        each: Callable[..., Iterable[list[Row]]] = map
        if options.jobs > 1:
            pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
            each = stack.enter_context(pool).map
        rows = [row for op_rows in each(compile_op, *zip(*tasks, strict=True)) for row in op_rows]
    rows.sort(key=key)
    for row in rows:
        print(console_line(row))
    messages = faults(rows)
    if options.write:
        replaced = {(op, f"sm_{target}", triton.__version__) for op in options.ops for target in options.targets}
        other = [row for row in read_tables(options.write) if (row["op"], row["target"], row["triton"]) not in replaced]
        write_tables(options.write, other + rows)
    else:
        table = read_tables()
        messages += regressions(rows, table, complete=options.most is None)
        if not any(row["triton"] == triton.__version__ for row in table):
            print(f"There is no table of Triton {triton.__version__}: nothing to compare with", file=sys.stderr)
    for message in messages:
        print(message, file=sys.stderr)
    print(f"{len(rows)} compiled, {len(messages)} at fault (Triton {triton.__version__})")
    return 1 if messages else 0


def console_line(row: Row) -> str:
    """Return the printed line of a kernel."""
    loads = f"loads {row['loads_128']} wide, {row['loads_narrower']} narrower" if row["loads_128"] else ""
    return (
        f"{row['op']:<20} {row['case']:<44} {row['target']:<6} {row['kernel']:<22} "
        f"{row['registers']:>3} registers  {row['shared_bytes']:>6} B shared  occupancy {row['occupancy']}  "
        f"{row['products']:<8} {loads}"
    )


if __name__ == "__main__":
    sys.exit(main())
