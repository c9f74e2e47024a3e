"""Console output of a sweep: a live table on a terminal, a line for each ended run elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..common.standard_streams import is_open, is_terminal
from ..telemetry.base import Logger, RoundReport, RunSummary
from .directory import SweepDirectory
from .plan import SweepRun

TABLE_ROWS = 20
"""Runs that the live table shows: those that train, and the last ones that ended."""
REDRAW_S = 0.5


@dataclass
class _Row:
    rounds: int = 0
    comm_round: int = 0
    train_loss: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    changed: float = 0.0


class SweepConsole:
    """Show what happens in a sweep.

    Args:
        directory: Directory of the sweep.
        runs: The runs.
        stream: Output; standard error by default.
        shows: Whether this process shows anything.
    """

    def __init__(
        self, directory: SweepDirectory, runs: Sequence[SweepRun], *, stream: TextIO | None = None, shows: bool = True
    ) -> None:
        self._directory = directory
        self._stream = sys.stderr if stream is None else stream
        self._shows = shows and is_open(self._stream)
        self._rows = {run.name: _Row() for run in runs}
        self._drawn = 0.0
        self._live: Live | None = None
        if self._shows and is_terminal(self._stream):
            console = Console(file=self._stream)
            if not console.is_dumb_terminal:
                self._live = Live(console=console, auto_refresh=False)
                self._live.start()

    def logger(self, run: SweepRun) -> Logger:
        """Return a logger that shows a run's rounds and evaluations."""
        return _RunLogger(self, run)

    def ended(self, run: SweepRun) -> None:
        """Show the state of a run that has ended, or waits for the others."""
        state, row = self._directory.states[run.name], self._rows[run.name]
        row.changed = time.monotonic()
        reason = "" if state.message is None else f": {state.message}"
        counted = f"round {row.comm_round}/{row.rounds}"
        if self._live is None:
            self.message(f"{run.name}  {state.status}{reason}  {counted}  {_scores(row.last)}".rstrip())
        self.draw(now=True)

    def message(self, text: str) -> None:
        """Show one line."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._shows:
            try:
                print(text, file=self._stream, flush=True)
            except (OSError, ValueError):
                self._shows = False  # the reader is gone; the sweep goes on without it

    def draw(self, *, now: bool = False) -> None:
        """Draw the live table, at most twice a second unless `now`."""
        if self._live is not None and (now or time.monotonic() - self._drawn > REDRAW_S):
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        """Leave the table as it is."""
        if self._live is not None:
            self._live.stop()

    def update(self, run: SweepRun, **values: Any) -> None:
        """Note values of a run: rounds, comm_round, train_loss, last."""
        row = self._rows[run.name]
        for name, value in values.items():
            setattr(row, name, value)
        row.changed = time.monotonic()
        self.draw()

    def _table(self) -> Table:
        states = self._directory.states
        count = {status: sum(state.status == status for state in states.values()) for status in ("done", "running")}
        title = f"{len(states)} runs: {count['done']} done, {count['running']} running"
        table = Table(title=title, title_justify="left")
        for head in ("run", "status", "round", "train loss", "test"):
            table.add_column(head, overflow="fold")
        names = [name for name in states if self._rows[name].changed]
        names.sort(key=lambda name: (states[name].status == "running", self._rows[name].changed))
        shown = {*names[-TABLE_ROWS:]}
        for name in (name for name in states if name in shown):
            row = self._rows[name]
            loss = "" if row.train_loss is None else f"{row.train_loss:.4f}"
            table.add_row(name, states[name].status, f"{row.comm_round}/{row.rounds}", loss, _scores(row.last))
        return table


class _RunLogger(Logger):
    def __init__(self, console: SweepConsole, run: SweepRun) -> None:
        self._console, self._run = console, run

    def start(self, summary: RunSummary) -> None:
        self._console.update(self._run, rounds=summary.rounds)

    def round(self, report: RoundReport) -> None:
        self._console.update(self._run, comm_round=report.comm_round, train_loss=report.train_loss)

    def evaluation(self, row: dict[str, Any]) -> None:
        self._console.update(self._run, comm_round=row["comm_round"], last=row)

    def message(self, text: str) -> None:
        self._console.message(f"{self._run.name}: {text}")


def _scores(row: dict[str, Any]) -> str:
    """Format the perplexity, the accuracy, or the loss, of an evaluation."""
    if not row:
        return ""
    if "val_ppl" in row:
        return f"val ppl {row['val_ppl']:.4f}"
    if row["val_acc1"] is None:
        return f"val loss {row['val_loss']:.4f}"
    return f"val acc {row['val_acc1']:.4f} best {row['best_acc']:.4f}"
