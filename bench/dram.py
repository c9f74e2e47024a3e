"""Bytes that cross device memory, as ncu counts them, for one case of each main kernel.

    python -m bench.dram --out DIR [--seconds N]

Every kernel of one call of the op is counted, each with cold caches, those of torch that pack and sum included. Without
ncu, or where it may not count, nothing is written and one line says so.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.tables import Row, write
from fastlocal.kernels.case import cases

COUNTED = (
    "client_sgd",
    "client_mean",
    "client_sgd_mean",
    "gather_augment",
    "norm_act",
    "conv2d_clients",
    "conv2d_clients_input_grad",
    "conv2d_clients_weight_grad",
    "norm_act_backward",
    "label_noise_loss",
    "client_norm",
)
"""The main kernels, the first ones where time is short."""

LEAST = 10.0
"""Seconds below which no op is counted."""


def counted_bytes(printed: str) -> int | None:
    """The sum of dram__bytes.sum over the kernels in what `ncu --csv` prints, or None where it holds none."""
    table = [line for line in printed.splitlines() if line.startswith('"')]
    values = [
        int(float(line["Metric Value"].replace(",", "")))
        for line in csv.DictReader(io.StringIO("\n".join(table)))
        if line.get("Metric Name") == "dram__bytes.sum"
    ]
    return sum(values) if values else None


def count(ncu: str, op: str, seconds: float) -> Row:
    """A row for the first large case of an op, with a note where nothing was counted."""
    case = next(case for case in cases(op) if case.large)
    line = {"op": op, "case": case.name, "bytes_moved": str(case.bytes_moved), "dram_bytes": "", "note": ""}
    if seconds < LEAST:
        return line | {"note": "no time was left"}
    command = [ncu, "--csv", "--metrics", "dram__bytes.sum", "--print-units", "base", "--profile-from-start", "off"]
    try:
        done = subprocess.run(
            [*command, sys.executable, "-m", "bench.run_once", op, case.name],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return line | {"note": f"not counted within {seconds:.0f} s"}
    counted = counted_bytes(done.stdout)
    if counted is None:
        said = (done.stdout + done.stderr).strip().splitlines()
        return line | {"note": said[-1] if said else "nothing printed"}
    return line | {"dram_bytes": str(counted)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.dram", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder for dram.csv")
    made.add_argument("--seconds", type=float, default=120.0, help="after which no further op is counted")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    ncu = shutil.which("ncu")
    if ncu is None:
        print("There is no ncu on the PATH: no bytes were counted.")
        return 0
    end = time.monotonic() + asked.seconds
    rows: list[Row] = []
    for op in COUNTED:
        rows.append(count(ncu, op, end - time.monotonic()))
        write(asked.out / "dram.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
