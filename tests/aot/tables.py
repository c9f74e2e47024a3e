"""The tables of compiled kernels, one file for each Triton version.

`configurations.csv` lists the configurations once for all targets and versions. `3.9.0.csv` and the like hold the
measurements of that Triton version for each configuration and target, and refer to the configuration by its id.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

TABLES = Path(__file__).resolve().parents[2] / "bench" / "results" / "aot"
CONFIGURATIONS = "configurations.csv"

CONFIGURATION = ("op", "kernel", "case", "configuration")
MEASURED = (
    "target",
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
)
COLUMNS = (*CONFIGURATION, *MEASURED, "triton")
KEY = ("op", "kernel", "configuration", "target", "triton")
Row = dict[str, str]


def key(row: Row) -> tuple[str, ...]:
    """Return the values that identify a row."""
    return tuple(row[column] for column in KEY)


def name(row: Row) -> str:
    """Return the name of a row in messages."""
    return f"{row['op']} ({row['case']}, {row['kernel']}) on {row['target']} with Triton {row['triton']}"


def read_tables(folder: Path = TABLES) -> list[Row]:
    """Read the rows of all versions, sorted by KEY; none where the folder does not exist."""
    if not (folder / CONFIGURATIONS).exists():
        return []
    compiled = {line.pop("id"): line for line in _read(folder / CONFIGURATIONS)}
    rows = [
        compiled[line.pop("id")] | line | {"triton": path.stem}
        for path in folder.glob("*.csv")
        if path.name != CONFIGURATIONS
        for line in _read(path)
    ]
    return sorted(rows, key=key)


def write_tables(folder: Path, rows: Iterable[Row]) -> None:
    """Write the rows of all versions, one file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    by_version: dict[str, list[Row]] = {}
    for line in sorted(rows, key=key):
        by_version.setdefault(line["triton"], []).append(line | {"id": _id(line)})
    compiled = {line["id"]: line for lines in by_version.values() for line in lines}
    _write(folder / CONFIGURATIONS, ("id", *CONFIGURATION), sorted(compiled.values(), key=lambda line: key(line)[:3]))
    for version, lines in by_version.items():
        _write(folder / f"{version}.csv", ("id", *MEASURED), lines)


def _id(line: Row) -> str:
    """Return a short id that depends on the configuration alone, so that versions share it."""
    words = "\n".join(line[column] for column in ("op", "kernel", "configuration"))
    return f"{line['op']}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
