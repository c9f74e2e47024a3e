"""fastlocal report: one HTML page about runs and sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from .argv import normalise, refuse_unknown
from .parser import parse_flags

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ReportFlags:
    """Write one HTML page about runs: curves, statistics over seeds, tables, settings, clients and time.

    The page loads nothing from elsewhere, and may be sent as it is. Runs may still be training.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, and directories of sweeps"""
    out: Path = Path("report.html")
    """file to write; one of that name is replaced"""
    tables: Path | None = None
    """folder for results.csv, summary.csv and differences.csv; None: not written"""
    plots: Path | None = None
    """folder for the plots as SVG files; None: not written"""


def run(argv: Sequence[str]) -> int:
    """Write the page, and what else was asked for; print the names of the files."""
    words = normalise(argv)
    refuse_unknown(words, (spec.name for spec in dataclasses.fields(ReportFlags)[1:]), "fastlocal report")
    flags = parse_flags(ReportFlags, "fastlocal report", words)
    if not flags.runs:
        raise UsageError("fastlocal report: name run directories or the directories of sweeps")
    out = flags.out.expanduser()
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: name a file that ends in {' or '.join(SUFFIXES)}")
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"--out {out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")

    with defer_signals():
        from ..reports.page import report_page
        from ..reports.plots import save_plots
        from ..reports.sweep_records import collect
        from ..reports.tables import save_tables, write_bytes

    sweep = collect(flags.runs, "RUN")
    content = report_page(sweep).encode()
    try:
        for folder, save in ((flags.tables, save_tables), (flags.plots, save_plots)):
            if folder is not None:
                folder.expanduser().mkdir(parents=True, exist_ok=True)
                save(sweep, folder.expanduser())
                print(folder)
        write_bytes(out, content)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{error.filename}: cannot be written ({error.strerror})") from None
    print(out)
    return 0
