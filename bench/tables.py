"""CSV files of rows, each whole or as it was before: whoever writes one may be stopped at any time."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row], columns: Iterable[str] | None = None) -> None:
    """Write the rows with these columns, by default all that any row has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(columns or dict.fromkeys(name for line in rows for name in line))
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def merge(path: Path, rows: Sequence[Row], keys: Sequence[str], without: Sequence[Row] = ()) -> None:
    """Write a file in which these rows replace those with the same values of `keys`, as of those in `without`.

    The columns are those of the first new row.
    """
    new = {tuple(row[key] for key in keys) for row in (*rows, *without)}
    kept = [row for row in read(path) if tuple(row.get(key, "") for key in keys) not in new]
    write(path, [*kept, *rows], rows[0])
