"""Shared code of the benches: tables of rows, the commit, the machine, and statistics of times."""

from __future__ import annotations

import csv
import functools
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

Row = dict[str, str]
"""A row of a CSV table, by column."""

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a table; none where the file does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row], columns: Iterable[str] | None = None) -> None:
    """Write a table by way of a temporary file, so that a process that is stopped leaves the old one.

    Args:
        path: The CSV file.
        rows: Rows; a missing column is written empty.
        columns: Columns in their order; by default all that any row has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def merge_rows(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Add rows to a table in place of those with the same values of `keys`; the columns are those of the first row."""
    new = {tuple(row[key] for key in keys) for row in rows}
    old = [row for row in read_rows(path) if tuple(row.get(key, "") for key in keys) not in new]
    write_rows(path, [*old, *rows], rows[0])


@functools.cache
def commit() -> str:
    """Return the short hash of the commit, with "+" if the sources differ from it; empty outside a repository."""
    sources = ["fastlocal", "kernels", "bench", ":!bench/results"]
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        diff = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *sources], cwd=ROOT, capture_output=True)
    except FileNotFoundError:  # no git
        return ""
    name = head.stdout.strip()
    return f"{name}+" if name and diff.returncode else name


def machine_columns() -> Row:
    """Return the columns that say where and with which versions a row was measured."""
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": str(cores()),
    }


def device_folder() -> Path:
    """Return the folder for this machine's results: `cpu`, or the name of the GPU."""
    return RESULTS / (re.sub(r"\W+", "_", torch.cuda.get_device_name().lower()) if torch.cuda.is_available() else "cpu")


def triton_version() -> str:
    """Return the version of Triton, or an empty string without Triton."""
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def cores() -> int:
    """Return the number of logical cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Return the model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class StealMeter:
    """Measures the share of the cores' time that the hypervisor gave to other guests since this object was made."""

    def __init__(self) -> None:
        self._start = self._ticks()

    def percent(self) -> str:
        """Return the share as a column; empty where the system does not tell."""
        spent = [now - then for then, now in zip(self._start, self._ticks(), strict=True)]
        return f"{100 * spent[7] / sum(spent):.1f}" if sum(spent) else ""

    @staticmethod
    def _ticks() -> tuple[int, ...]:
        """Read user, nice, system, idle, iowait, irq, softirq and steal time of all cores."""
        try:
            return tuple(int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9])
        except OSError:
            return ()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the 20th and the 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of times of the same turn."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=False))
