"""The distribution of the last evaluation over clients, from clients.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlocal.config.targets import lower_is_better

from .plot_data import COLOURS, MAX_PLACES, Line, LinePlot
from .run_records import RunRecord
from .statistics import evenly, summarise

FILE = "clients.jsonl"
MAX_RUNS = 4
"""Runs whose clients a report shows at most."""
MODELS = {"": "global model", "own_": "own models"}
"""Models that are evaluated, by the prefix of their values."""


def by_client_plots(runs: Sequence[RunRecord]) -> tuple[list[LinePlot], int]:
    """Return the plots of the first `MAX_RUNS` runs that evaluated clients, and the number of further ones."""
    found = [run for run in runs if (run.directory / FILE).is_file()]
    plots = [_plot(run, place) for place, run in enumerate(found[:MAX_RUNS])]
    return [plot for plot in plots if plot is not None], max(len(found) - MAX_RUNS, 0)


def last_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the last round of a clients.jsonl; lines that are torn are left out."""
    rows: list[dict[str, Any]] = []
    for line in reversed(path.read_bytes().split(b"\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or (rows and row.get("round") != rows[0].get("round")):
            break
        rows.append(row)
    return rows[::-1]


def _plot(run: RunRecord, place: int) -> LinePlot | None:
    """Return the values of clients in their order, worst first; None without values."""
    try:
        rows = last_rows(run.directory / FILE)
    except OSError:
        return None
    metric = "acc1" if any(_is_number(row.get("acc1")) for row in rows) else "loss"
    lines = []
    for (prefix, label), colour in zip(MODELS.items(), COLOURS, strict=False):
        values = [row[prefix + metric] for row in rows if _is_number(row.get(prefix + metric))]
        values.sort(reverse=lower_is_better(metric))
        ranks = evenly(range(1, len(values) + 1), MAX_PLACES)
        points = [point for point in (summarise([values[rank - 1]]) for rank in ranks) if point is not None]
        if points:
            lines.append(Line(label, colour, ranks, points))
    if not lines:
        return None
    what = "accuracy" if metric == "acc1" else "loss"
    title = f"{what} by client of {run.name}, round {rows[0].get('round')}"
    return LinePlot(f"by_client_{place}", title, "clients, worst first", what, lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
