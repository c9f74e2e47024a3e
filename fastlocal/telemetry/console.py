"""Console output of a run: a live bar on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from fastlocal.common.standard_streams import is_open, is_terminal
from fastlocal.telemetry.base import Logger, RoundReport, RunSummary

TABLE_ROWS = 10


class ConsoleLogger(Logger):
    """Show rounds, loss, accuracy, samples per second and the time left.

    Samples per second are all samples since `start` per time since then, evaluation and saving included. The time left
    is that of the remaining samples at this speed.

    Args:
        stream: Output, standard error by default; a missing or closed stream shows nothing.
        interactive: Whether to draw a live bar; None: if `stream` is a terminal that can move its cursor.
    """

    def __init__(self, stream: TextIO | None = None, interactive: bool | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._readable = is_open(self._stream)
        self._bar = None
        if interactive or (interactive is None and is_terminal(self._stream)):
            console = Console(file=self._stream, force_terminal=interactive)
            self._bar = _Bar(console) if interactive or not console.is_dumb_terminal else None
        self._rounds = 0
        self._samples = 0
        self._samples_done = 0
        self._samples_before = 0
        self._started = 0.0

    def start(self, summary: RunSummary) -> None:
        self._rounds = summary.rounds
        self._samples = summary.samples
        self._samples_before = summary.samples_done
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.start(summary)

    def round(self, report: RoundReport) -> None:
        self._samples_done += report.samples
        speed = self._samples_done / max(time.monotonic() - self._started, 1e-9)
        if self._bar is not None:
            done = self._samples_before + self._samples_done
            seconds_left = max(self._samples - done, 0) / max(speed, 1e-9)
            self._bar.round(report, done, speed, seconds_left)
            return
        accuracy = "" if report.train_acc1 is None else f" acc {report.train_acc1:.4f}"
        self._line(
            f"round {report.comm_round}/{self._rounds} epoch {report.epoch:.6g}{_clients(report)} loss "
            f"{report.train_loss:.4f}{accuracy} lr {report.learning_rate:.4g} {speed:.0f} samples/s"
        )

    def evaluation(self, row: dict[str, Any]) -> None:
        if self._bar is not None:
            self._bar.evaluation(row)
            return
        accuracy = "" if row["val_acc1"] is None else f" val acc {row['val_acc1']:.4f}"
        loss = f" val loss {row['val_loss']:.4f}" + (f" val ppl {row['val_ppl']:.4f}" if "val_ppl" in row else "")
        self._line(f"evaluation round {row['comm_round']}/{self._rounds}{accuracy}{loss}")
        for line in _by_client(row):
            self._line(line)

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.message(text)
        else:
            self._line(text)

    def close(self) -> None:
        """Stop the bar and restore the cursor; may be called more than once."""
        if self._bar is not None:
            self._bar.stop()

    def _line(self, text: str) -> None:
        if self._readable:
            try:
                print(text, file=self._stream, flush=True)
            except (OSError, ValueError):
                self._readable = False  # the reader is gone; the run goes on without it


class _Bar:
    """The live bar: one line that a thread of rich redraws four times a second."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", markup=False),
            TextColumn("{task.fields[speed]}", markup=False),
            _TimeLeft(),
            console=console,
            expand=True,
            refresh_per_second=4,
            # redirecting a file or a pipe would draw its lines above the bar
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=is_terminal(sys.stderr),
        )
        self._task = self._progress.add_task("", visible=False, numbers="", speed="", ends_at=None)
        self._rounds = 0
        self._train = ""
        self._test = ""

    def start(self, summary: RunSummary) -> None:
        self._rounds = summary.rounds
        self._progress.update(
            self._task, description=f"round 0/{summary.rounds}", total=max(summary.samples, 1), visible=True
        )
        self._progress.start()

    def round(self, report: RoundReport, samples_done: int, speed: float, seconds_left: float) -> None:
        accuracy = "" if report.train_acc1 is None else f" acc {report.train_acc1:.4f}"
        self._train = f"loss {report.train_loss:.4f}{accuracy}{_clients(report)}"
        self._progress.update(
            self._task,
            description=f"round {report.comm_round}/{self._rounds}",
            completed=samples_done,
            numbers=self._train + self._test,
            speed=f"{_short(speed)} samples/s",
            ends_at=time.monotonic() + seconds_left,
        )

    def evaluation(self, row: dict[str, Any]) -> None:
        accuracy = row["val_acc1"]
        self._test = f" test {accuracy:.4f}" if accuracy is not None else f" test loss {row['val_loss']:.4f}"
        self._test += f" ppl {row['val_ppl']:.4f}" if "val_ppl" in row else ""
        self._progress.update(self._task, numbers=self._train + self._test)
        for line in _by_client(row):
            self.message(line)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()


class _TimeLeft(ProgressColumn):
    """Count down between rounds to the end that the last round predicted."""

    def render(self, task: Task) -> Text:
        ends_at = task.fields["ends_at"]
        if ends_at is None:
            return Text("-:--:--")
        minutes, seconds = divmod(max(round(ends_at - time.monotonic()), 0), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}")


def summary_table(history: Sequence[dict[str, Any]]) -> str:
    """Format evaluations as a table of round, train loss and test accuracy (of tokens perplexity, else test loss).

    Args:
        history: Rows of metrics.jsonl; of more than 10 the table shows 10, evenly spaced with the first and the last.
    """
    by_accuracy = any(row["val_acc1"] is not None for row in history)
    key, title = ("val_acc1", "test accuracy") if by_accuracy else ("val_loss", "test loss")
    if any("val_ppl" in row for row in history):
        key, title = "val_ppl", "test ppl"
    lines = [f"{'round':>7}  {'train loss':>10}  {title:>13}"]
    for row in _evenly(history, TABLE_ROWS):
        # before the first round the train loss is 0 for want of samples
        train = f"{row['train_loss']:.4f}" if row["comm_round"] > 0 else "-"
        value = "-" if row[key] is None else f"{row[key]:.4f}"
        lines.append(f"{row['comm_round']:>7}  {train:>10}  {value:>13}")
    return "\n".join(lines)


def _by_client(row: dict[str, Any]) -> Iterator[str]:
    """Format the statistics of an evaluation by client: a line for the global model, and one for the own models."""
    for model, who in (("client", "global model"), ("own", "own models")):
        if f"{model}_acc1" in row:
            mean, weighted, worst = (row[f"{model}_{name}acc1"] for name in ("", "weighted_", "worst_"))
            yield f"by client: {who} acc {mean:.4f}, weighted {weighted:.4f}, worst tenth {worst:.4f}"
        elif f"{model}_loss" in row:
            yield f"by client: {who} loss {row[f'{model}_loss']:.4f}, weighted {row[f'{model}_weighted_loss']:.4f}"


def _clients(report: RoundReport) -> str:
    """Format the clients of a round in which not all take part."""
    return "" if report.clients is None else f" clients {report.clients}"


def _evenly(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]


def _short(value: float) -> str:
    """Format a number with three digits and a letter: 987, 12.3k, 1.23M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
