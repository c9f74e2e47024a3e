"""Everything that a GPU can show, in one command of under ten minutes.

    python -m bench.gpu_suite --out DIR

Leaves gate.csv (the kernel checks on the device), kernels.csv (timings beside a measured copy), dram.csv (bytes that
ncu counts, where it is present) and summary.md. Needs torch, triton, numpy and the repository.
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

import torch

from bench import kernels as bench
from bench.device import NO_GPU
from fastlocal import kernels
from fastlocal.kernels.case import cases

TARGETS = {
    "client_sgd": 0.85,
    "client_mean": 0.85,
    "client_sgd_mean": 0.85,
    "gather_augment": 0.60,
    "norm_act": 0.75,
}
"""Fractions of the measured copy bandwidth that are aimed at on an H100."""

SECONDS = 480.0
"""After which nothing new is started."""

COUNTED = ("client_sgd", "client_mean", "client_sgd_mean", "gather_augment")
"""Ops of one launch, whose bytes in DRAM are counted."""


def summary(checks: Sequence[bench.Row], rows: Sequence[bench.Row], dram: Sequence[bench.Row]) -> str:
    """One page: the machine, the gate, and for each case Triton beside the best of the others."""
    lines = ["# Kernels on a GPU", ""]
    if rows:
        about = rows[0]
        lines += [
            f"{about['gpu']} (capability {about['capability']}, {about['multiprocessors']} multiprocessors, "
            f"L2 {int(about['l2_bytes']) // 2**20} MiB, up to {about['sm_mhz'] or '?'} MHz, "
            f"memory {about['memory_mhz'] or '?'} MHz, power limit {about['power_limit_w'] or '?'} W), "
            f"torch {about['torch']}, triton {about['triton']}, commit {about['commit'] or '?'}.",
            f"A copy of 1 GiB moves {about['copy_gb_per_s']} GB/s; fractions are of that.",
            "",
        ]
    faults = [line for line in checks if line["fault"]]
    lines += [f"Gate: {len(checks) - len(faults)} of {len(checks)} checks passed.", ""]
    lines += [f"- {line['op']} ({line['case']}): {line['fault']}" for line in faults]
    lines += ["", "| op | case | ms | of a copy | aim | best other | times as fast |", "|---|---|--:|--:|--:|---|--:|"]
    for line in rows:
        if line["variant"] == "triton":
            lines.append(_compared(line, rows))
    if dram:
        lines += ["", "| op | case | bytes counted | bytes in DRAM (ncu) |", "|---|---|--:|--:|"]
        lines += [f"| {one['op']} | {one['case']} | {one['bytes_moved']} | {one['dram_bytes']} |" for one in dram]
    return "\n".join(lines) + "\n"


def _compared(line: bench.Row, rows: Sequence[bench.Row]) -> str:
    if not line["median_ms"]:
        return f"| {line['op']} | {line['case']} | {line['note']} | | | | |"
    others = [
        one
        for one in rows
        if (one["op"], one["case"]) == (line["op"], line["case"]) and one["variant"] != "triton" and one["median_ms"]
    ]
    best = min(others, key=lambda one: float(one["median_ms"]), default=None)
    faster = f"{float(best['median_ms']) / float(line['median_ms']):.2f}" if best else ""
    aim = f"{TARGETS[line['op']]:.2f}" if line["op"] in TARGETS else ""
    return (
        f"| {line['op']} | {line['case']} | {float(line['median_ms']):.4f} | {line['copy_fraction']} | {aim} "
        f"| {best['variant'] if best else ''} | {faster} |"
    )


def dram_bytes(deadline: float) -> list[bench.Row]:
    """What ncu counts for the first large case of some ops; empty where ncu is not present or may not count."""
    rows: list[bench.Row] = []
    ncu = shutil.which("ncu")
    for op in COUNTED if ncu else ():
        case = next(case for case in cases(op) if case.large)
        left = deadline - time.monotonic()
        if left < 30:
            break
        command = [str(ncu), "--csv", "--metrics", "dram__bytes.sum", "--print-units", "base"]
        command += ["--kernel-name", f"regex:^_{op}", "--launch-count", "1"]
        command += [sys.executable, "-m", "bench.run_once", op, case.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            break
        counted = counted_bytes(done.stdout)
        if counted is not None:
            rows.append({"op": op, "case": case.name, "bytes_moved": str(case.bytes_moved), "dram_bytes": str(counted)})
    return rows


def counted_bytes(printed: str) -> int | None:
    """The value of dram__bytes.sum in what `ncu --csv` prints, or None where it holds none."""
    table = [line for line in printed.splitlines() if line.startswith('"')]
    for line in csv.DictReader(io.StringIO("\n".join(table))):
        if line.get("Metric Name") == "dram__bytes.sum":
            return int(float(line["Metric Value"].replace(",", "")))
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the CSV files and the summary")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    deadline = time.monotonic() + SECONDS
    status = bench.main(["--out", str(asked.out), "--seconds", str(SECONDS - 60), "--ops", *kernels.TRITON_OPS])
    dram = dram_bytes(deadline)
    if dram:
        bench.write(asked.out / "dram.csv", dram)
    checks, rows = (read(asked.out / f"{name}.csv") for name in ("gate", "kernels"))
    text = summary(checks, rows, dram)
    (asked.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return status


def read(path: Path) -> list[bench.Row]:
    """The rows of a CSV file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(main())
