"""One HTML page about a sweep or about runs: what they reached, how they differ, and where their time went."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastlocal.common.version import __version__
from fastlocal.config.schema import AREA_OF

from .by_client import by_client_plots
from .clients import client_plots
from .html_parts import (
    Cell,
    definitions,
    details,
    figure,
    figures,
    heading,
    legend,
    mean_cell,
    page,
    paragraph,
    section,
    table,
)
from .plot_data import HeatMap, LinePlot, all_plots
from .plots import load_renderer
from .spans import read_spans
from .statistics import CONFIDENCE
from .sweep_records import MAX_NAMED, Setting, Sweep, config_differences, settings_of, show
from .tables import best, difference, results, summary_metrics, summary_of

SIDE_BY_SIDE = 8
"""Runs whose differences are shown in a column each; of more, the values that occur."""
PROFILES = 4
"""Runs whose spans are shown at most."""
MACHINE = ("device", "precision", "executor", "workers", "chunk", "deterministic")


def report_page(sweep: Sweep) -> str:
    """Return the page's text; raises UsageError without matplotlib."""
    settings = settings_of(sweep)
    parts = [
        _head(sweep, settings),
        *_plots(sweep),
        section("Settings", *_summary(sweep, settings)),
        section("Runs", table("runs", *_results(sweep))),
        section("Configuration", *_configuration(sweep)),
        section("Clients", *_clients(sweep)),
        section("Time", *_time(sweep)),
        paragraph(f"Written by fastlocal {__version__}.", "faint"),
    ]
    return page(sweep.name, filter(None, parts))


def _head(sweep: Sweep, settings: Sequence[Setting]) -> str:
    counts = Counter(run.status for run in sweep.runs if run.status)
    states = "".join(f", {count} {status}" for status, count in counts.items())
    of_each = ((sweep.runs, "run"), (settings, "setting"))
    counted = [f"{len(found)} {word}{'' if len(found) == 1 else 's'}" for found, word in of_each]
    lines = ["<header>", heading(sweep.name), paragraph(f"{' of '.join(counted)}{states}")]
    if sweep.command:
        lines.append(paragraph(shlex.join(sweep.command), "faint"))
    metrics = summary_metrics(sweep)
    chosen = best(settings, metrics[0]) if metrics else None
    found = None if chosen is None else summary_of(chosen, metrics[0])
    if chosen is not None and found is not None:
        text = f"{'Best final' if len(settings) > 1 else 'Final'} {metrics[0]}: {found.mean:.4g}, {chosen.label}"
        if found.low is not None and found.high is not None:
            text += f"; {CONFIDENCE:.0%} interval {found.low:.4g} to {found.high:.4g} over {found.n} seeds"
        lines.append(paragraph(text, "good"))
    elif not any(run.rows for run in sweep.runs):
        lines.append(paragraph("No run has been evaluated yet."))
    return "\n".join([*lines, "</header>"])


def _plots(sweep: Sweep) -> list[str]:
    _, draw = load_renderer("fastlocal report")
    curves, finals = [], []
    shown: dict[str, Any] = {}
    left_out = 0
    for plot in all_plots(sweep):
        if isinstance(plot, LinePlot) and not plot.dots:
            curves.append(figure(plot.title, draw(plot)))
            shown |= {line.colour: line for line in plot.lines}
            left_out = plot.left_out
        elif isinstance(plot, HeatMap):
            finals.append(figure(plot.title, draw(plot)))
        else:
            names = legend(plot.lines, plot.left_out) if len(plot.lines) > 1 else ""
            finals.append(figure(plot.title, draw(plot), names))
    seeds = any(len(setting.by_seed) > 1 for setting in settings_of(sweep))
    band = f"Lines are means over seeds, bands {CONFIDENCE:.0%} intervals of Student's t." if seeds else ""
    return [
        section("Curves", paragraph(band, "faint") if band else "", legend(shown.values(), left_out), figures(curves))
        if curves
        else "",
        section("Final values", figures(finals)),
    ]


def _summary(sweep: Sweep, settings: Sequence[Setting]) -> list[str]:
    """Return the table of settings, and that of their differences."""
    metrics = summary_metrics(sweep)
    if not metrics or len(sweep.runs) < 2:
        return []
    by_fields = 0 < len(sweep.swept) <= MAX_NAMED
    leaders = {metric: best(settings, metric) for metric in metrics}
    rows = []
    for setting in settings:
        named = list(setting.values.values()) if by_fields else [setting.label]
        row: list[Any] = [*named, len(setting.by_seed), len(setting.runs)]
        for metric in metrics:
            leads = len(settings) > 1 and setting is leaders[metric]
            row.append(mean_cell(summary_of(setting, metric), leads))
        rows.append(row)
    columns = [*(sweep.swept if by_fields else ["setting"]), "n", "runs", *metrics]
    words = f"Mean over n finished seeds ± half of the {CONFIDENCE:.0%} interval. One seed has no interval."
    return [paragraph(words, "faint"), table("settings", columns, rows), _differences(sweep, settings, metrics)]


def _differences(sweep: Sweep, settings: Sequence[Setting], metrics: Sequence[str]) -> str:
    """Return the paired differences from the best setting, folded up."""
    rows = []
    for metric in (name for name in metrics if name.startswith("val_")):
        leader = best(settings, metric)
        for setting in settings:
            found = None if leader is None or setting is leader else difference(setting, leader, metric)
            if found is None or leader is None:
                continue
            apart = found.low is not None and found.high is not None and not found.low <= 0 <= found.high
            ends = (found.low, found.high)
            sure = "" if found.low is None else "yes" if apart else "no"
            rows.append([metric, setting.label, leader.label, found.n, found.mean, *ends, sure])
    if not rows:
        return ""
    columns = ("metric", "setting", "best setting", "pairs", "difference", "low", "high", "excludes 0")
    words = (
        f"Setting minus best setting, seed by seed: runs of one seed share their random numbers. Low and high are the "
        f"{CONFIDENCE:.0%} interval of the mean difference, not corrected for the number of settings."
    )
    return details("Differences from the best setting", paragraph(words, "faint"), table("differences", columns, rows))


def _results(sweep: Sweep) -> tuple[list[str], list[list[Any]]]:
    found = results(sweep)
    columns, rows = list(found.columns), [list(row) for row in found.rows]
    if any(run.message for run in sweep.runs):
        columns.append("message")
        rows = [[*row, run.message] for row, run in zip(rows, sweep.runs, strict=True)]
    hidden = sweep.fields if len(sweep.swept) > MAX_NAMED else ()  # the configuration shows them
    kept = [i for i, name in enumerate(columns) if name not in hidden and any(row[i] not in (None, "") for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _configuration(sweep: Sweep) -> list[str]:
    """Return what differs between runs, and what all of them share by area."""
    known = [run for run in sweep.runs if run.settings]
    if not known:
        return []
    apart, out = config_differences(known), []
    if apart and len(known) <= SIDE_BY_SIDE:
        rows = [[name, *(show(run.settings.get(name)) for run in known)] for name in apart]
        out.append(table("differences in configuration", ("field", *(run.name for run in known)), rows))
    elif apart:
        listed = [[name, ", ".join(map(show, values)), str(len(values))] for name, values in apart.items()]
        out.append(table("differences in configuration", ("field", "values", "number of values"), listed))
    elif len(known) > 1:
        out.append(paragraph("The configurations do not differ."))
    shared = {name: value for name, value in known[0].settings.items() if name not in apart and name != "log_pth"}
    machine = {name: shared[name] for name in MACHINE if name in shared}
    if machine:
        out.append(paragraph("Machine: " + ", ".join(f"{name} {show(value)}" for name, value in machine.items())))
    areas: dict[str, dict[str, Any]] = {}
    for name, value in shared.items():
        areas.setdefault(AREA_OF.get(name, "run"), {})[name] = value
    tables = [f"<h3>{area}</h3>{definitions(values)}" for area, values in areas.items()]
    return [*out, details("All settings" if len(known) == 1 else "Settings that all runs share", *tables)]


def _clients(sweep: Sweep) -> list[str]:
    _, draw = load_renderer("fastlocal report")
    plots, left_out = client_plots(sweep.runs)
    notes = dict.fromkeys(plot.note for plot in plots if plot.note)
    more = [f"{left_out} more partitions are not shown."] if left_out else []
    results, runs_left_out = by_client_plots(sweep.runs)
    more += [f"{runs_left_out} more runs evaluated clients, and are not shown."] if runs_left_out else []
    drawn = [figure(plot.title, draw(plot)) for plot in plots]
    drawn += [figure(plot.title, draw(plot), legend(plot.lines)) for plot in results]
    return [figures(drawn), *(paragraph(text, "faint") for text in (*notes, *more))] if drawn else []


def _time(sweep: Sweep) -> list[str]:
    """Return the spans of the runs that were profiled."""
    out = []
    profiled = [(run, *read_spans(run.directory)) for run in sweep.runs]
    for run, what, spans in [one for one in profiled if one[2]][:PROFILES]:
        rows = [[span.name, Cell(f"{span.share:.1%}", span.share), span.round_ms] for span in spans]
        out.append(paragraph(f"{run.name}, {what}" if len(sweep.runs) > 1 else what))
        out.append(table(f"time by span of {run.name}", ("span", "share", "ms per round"), rows))
    return out

