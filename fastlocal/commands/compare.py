"""fastlocal compare: runs side by side in the terminal."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ..common.errors import UsageError, nearest
from ..common.interrupts import defer_signals
from ..common.standard_streams import is_terminal
from ..config.targets import lower_is_better
from .argv import normalise, refuse_unknown
from .parser import parse_flags

if TYPE_CHECKING:
    from rich.table import Table

    from ..reports.run_records import RunRecord

SIDE_BY_SIDE = 6
"""Runs whose differences are shown in a column each; of more, the values that occur."""
NO_TERMINAL_WIDTH = 10_000
"""Columns of output that is no terminal, so that no line is broken."""


@dataclass(frozen=True)
class CompareFlags:
    """Show runs side by side: settings that differ, final and best values, and how soon each reached a target.

    The best value of a column has a star. Runs may still be training.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, and directories of sweeps"""
    metric: str | None = None
    """metric of metrics.jsonl to compare by; None: val_acc1, or val_loss where no run has it"""
    to: float | None = None
    """value of the metric: also show the first evaluated round that reached it, and the samples up to there"""


@dataclass(frozen=True)
class Column:
    """A column of numbers, a row for each run.

    Attributes:
        title: Its head.
        values: A number for each run, or None.
        format: Formats a number.
        best: Chooses the best number, min or max; None: none is better.
    """

    title: str
    values: Sequence[float | None]
    format: Callable[[float], str]
    best: Callable[[list[float]], float] | None = None

    def cells(self) -> list[str]:
        """Return the numbers as marked up text, the best of several with a star."""
        finite = [value for value in self.values if value is not None and math.isfinite(value)]
        if self.best is None or len(set(finite)) < 2:
            return ["-" if value is None else self.format(value) for value in self.values]
        best = self.best(finite)
        texts = ["-" if value is None else self.format(value) for value in self.values]
        marked = zip(texts, self.values, strict=True)
        return [f"[bold green]{text}*[/]" if value == best else f"{text} " for text, value in marked]


def run(argv: Sequence[str]) -> int:
    """Print the tables."""
    words = normalise(argv)
    refuse_unknown(words, (spec.name for spec in dataclasses.fields(CompareFlags)), "fastlocal compare")
    flags = parse_flags(CompareFlags, "fastlocal compare", words)
    if not flags.runs:
        raise UsageError("fastlocal compare: name run directories or the directories of sweeps")

    with defer_signals():
        from rich.console import Console

        from ..reports.sweep_records import collect

    runs = collect(flags.runs, "RUN").runs
    metric = _metric(runs, flags.metric)
    width = None if is_terminal(sys.stdout) else NO_TERMINAL_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False)
    for table in (_settings(runs), _results(runs, metric, flags.to)):
        if table is not None:
            console.print(table)
    for one in runs:
        if one.message:
            console.print(f"{_printable(one.name)}: {_printable(one.message)}", soft_wrap=True)
    return 0


def _metric(runs: Sequence[RunRecord], given: str | None) -> str:
    from ..reports.run_records import BEST, metric_names

    known = metric_names(runs)
    if given is None:
        return BEST if BEST in known or not known else known[0]
    if given not in known:
        listed = f"; the runs have {', '.join(known)}" if known else "; no run has been evaluated"
        raise UsageError(f"--metric {given}: no run has it{nearest(given, known)}{listed}")
    return given


def _settings(runs: Sequence[RunRecord]) -> Table | None:
    """Return the settings in which runs differ; None if there are none."""
    from ..reports.sweep_records import config_differences, show

    known = [one for one in runs if one.settings]
    apart = config_differences(known)
    if not apart:
        return None
    if len(known) > SIDE_BY_SIDE:
        table = _table("setting", "values")
        for name, values in apart.items():
            table.add_row(name, _printable(", ".join(map(show, values))))
        return table
    table = _table("setting", *(one.name for one in known))
    for name in apart:
        table.add_row(name, *(_printable(show(one.settings.get(name))) for one in known))
    return table


def _results(runs: Sequence[RunRecord], metric: str, target: float | None) -> Table:
    """Return a row for each run."""
    from ..reports.run_records import metric_names

    def exact(value: float) -> str:
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"

    def whole(value: float) -> str:
        return f"{value:,.0f}"

    direction = min if lower_is_better(metric) else max
    bests = [one.best(metric) for one in runs]
    columns = [
        Column("rounds", [one.comm_round for one in runs], whole),
        Column(metric, [one.last(metric) for one in runs], exact, direction),
        Column(f"best {metric}", [None if best is None else best[0] for best in bests], exact, direction),
        Column("in round", [None if best is None else best[1] for best in bests], whole),
    ]
    for other in metric_names(runs):
        if other.startswith("val_") and other != metric:
            choose = min if lower_is_better(other) else max
            columns.append(Column(other, [one.last(other) for one in runs], exact, choose))
    if target is not None:
        rows = [one.first_at(metric, target) for one in runs]
        reached = [None if row is None else row.get("comm_round") for row in rows]
        samples = [None if row is None else one.samples(row) for one, row in zip(runs, rows, strict=True)]
        columns += [Column(f"rounds to {target:g}", reached, whole, min)]
        columns += [Column(f"samples to {target:g}", samples, whole, min)]
    states = [one.status for one in runs]
    table = _table("run", *(["status"] if any(states) else []), *(column.title for column in columns))
    cells = zip(*(column.cells() for column in columns), strict=True)
    for one, state, row in zip(runs, states, cells, strict=True):
        table.add_row(_printable(one.name), *([state] if any(states) else []), *row)
    return table


def _table(*titles: str) -> Table:
    """Return an empty table; the first column and texts are on the left, and long words break, none is cut."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, title in enumerate(titles):
        numbers = place > 0 and title not in ("status", "values")
        table.add_column(_printable(title), justify="right" if numbers else "left", overflow="fold")
    return table


def _printable(text: str) -> str:
    """Return a text without characters that move the cursor, and without the marks of rich."""
    from rich.markup import escape

    return escape("".join(one if one.isprintable() else repr(one)[1:-1] for one in text))
