"""The tables of docs/gpu.md and docs/profiling.md, from bench/results/counted."""

from __future__ import annotations

from collections.abc import Callable

from bench.common import RESULTS, Row, read_rows
from tests.docs.markdown_tables import table

PATH = RESULTS / "counted" / "steps.csv"


def name(row: Row) -> str:
    """Return the name of a step in a table."""
    noise = ", label noise" if row["label_noise"] == "True" else ""
    return f"`{row['model']}` {row['clients']} x {row['batch']}, {row['precision']}{noise}"


def versions(rows: list[Row]) -> str:
    """Return a line that says from which file rows are, and with what they were counted."""
    found = [", ".join(sorted({row[column] for row in rows})) for column in ("torch", "triton", "commit")]
    return f"\n`bench/results/counted/steps.csv`: torch {found[0]}, Triton {found[1]}; commits {found[2]}. Not timed.\n"


def counted() -> str:
    """Launches and bytes of steps."""
    rows = read_rows(PATH)
    columns = ("moved_gb", "floor_gb", "saved_gb")
    cells = [(name(row), row["launches"], *(f"{float(row[one]):.1f}" for one in columns)) for row in rows]
    head = ("step", ">launches", ">GB moved", ">GB of the floor", ">GB saved for the gradients")
    return table(head, cells) + versions(rows)


def fused() -> str:
    """Return the table of the fusions of each step, with their numbers."""
    rows = [row for row in read_rows(PATH) if row["fused"]]
    cells = []
    for row in rows:
        for part in row["fused"].split("; "):
            number, _, what = part.partition(" ")
            cells.append((name(row), what, number))
    return table(("step", "fused", ">per local step"), cells) + versions(rows)


TABLES: dict[str, Callable[[], str]] = {"counted": counted, "fused": fused}
