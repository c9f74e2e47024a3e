"""The files and the table in the terminal with which a sweep ends."""

from __future__ import annotations

from pathlib import Path

from ..common.errors import UsageError
from ..reports.plots import FOLDER, write_plots
from ..reports.statistics import Summary
from ..reports.sweep_records import read_sweep, settings_of
from ..reports.tables import TABLES, best, summary_of

MAX_ROWS = 50
"""Settings in the terminal."""


def summary_text(directory: Path, metric: str) -> str:
    """Format a metric of every setting: mean and 95 % interval over the seeds of its finished runs."""
    sweep = read_sweep(directory)
    settings = settings_of(sweep)
    winner = best(settings, metric)
    rows = [("", "runs", metric, "95 % interval")]
    for setting in settings[:MAX_ROWS]:
        found = summary_of(setting, metric)
        mark = "* " if setting is winner and len(settings) > 1 else "  "
        done = f"{len(setting.by_seed)}/{len(setting.runs)}"
        rows.append((mark + setting.label, done, *_numbers(found)))
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        for row in rows
    ]
    if len(settings) > MAX_ROWS:
        lines.append(f"and {len(settings) - MAX_ROWS} more in {TABLES[1]}")
    return "\n".join(lines)


def _numbers(found: Summary | None) -> tuple[str, str]:
    if found is None:
        return "-", ""
    interval = "" if found.low is None or found.high is None else f"{found.low:.4f} to {found.high:.4f}"
    return f"{found.mean:.4f}", interval


def write_report_files(directory: Path) -> list[str]:
    """Draw the plots, and return lines that name what the directory holds."""
    shown = directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory
    lines = [f"Written: {', '.join(TABLES)} and a directory for each run in {shown}"]
    try:
        write_plots(directory)
        lines.append(f"plots: {shown / FOLDER}; one page of all: fastlocal report {shown} --out report.html")
    except UsageError as missing:
        lines.append(str(missing))
    return lines
