"""The tables of bench.aot: what each version of Triton made of every kernel, one file a version.

`configurations.csv` says what is compiled, once for all targets and versions. `3.9.0.csv` and its like hold what that
version of Triton made of each configuration on each target, and name the configuration by its id.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

TABLES = Path(__file__).parent / "results" / "aot"
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


def key(line: Row) -> tuple[str, ...]:
    return tuple(line[column] for column in KEY)


def name(line: Row) -> str:
    return f"{line['op']} ({line['case']}, {line['kernel']}) on {line['target']} with Triton {line['triton']}"


def read_tables(folder: Path = TABLES) -> list[Row]:
    """The lines of all versions, in the order of KEY; none where the folder does not exist."""
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
    """Write the lines of all versions: those that were read, and those that are new."""
    folder.mkdir(parents=True, exist_ok=True)
    by_version: dict[str, list[Row]] = {}
    for line in sorted(rows, key=key):
        by_version.setdefault(line["triton"], []).append(line | {"id": _id(line)})
    compiled = {line["id"]: line for lines in by_version.values() for line in lines}
    _write(folder / CONFIGURATIONS, ("id", *CONFIGURATION), sorted(compiled.values(), key=lambda line: key(line)[:3]))
    for version, lines in by_version.items():
        _write(folder / f"{version}.csv", ("id", *MEASURED), lines)


def _id(line: Row) -> str:
    """Short, and the same in every version, whatever else is compiled."""
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
