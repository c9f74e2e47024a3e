"""The tables of a sweep: results.csv by run, summary.csv by setting, differences.csv by pair of settings."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlocal.common.atomic_file import write_atomically
from fastlocal.config.targets import lower_is_better

from .run_records import BEST, metric_names
from .statistics import Summary, paired_difference, summarise
from .sweep_records import Setting, Sweep, read_sweep, settings_of, show

SEPARATE_BEST = f"best_{BEST}"
BEST_COLUMNS = (SEPARATE_BEST, f"{SEPARATE_BEST}_comm_round")
TABLES = ("results.csv", "summary.csv", "differences.csv")


@dataclass(frozen=True)
class Table:
    """Column names, and rows of values; None is an empty cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def to_csv(self) -> str:
        """Return the text of a CSV file, floats with all their digits."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return out.getvalue()


def write_tables(sweep_directory: Path) -> None:
    """Write results.csv, summary.csv and differences.csv into the directory of a sweep, finished or not.

    Raises:
        UsageError: It holds no sweep.json that can be read.
    """
    save_tables(read_sweep(sweep_directory), sweep_directory)


def save_tables(sweep: Sweep, folder: Path) -> None:
    """Write the three tables into a folder, each atomically."""
    for name, table in zip(TABLES, (results(sweep), summary(sweep), differences(sweep)), strict=True):
        write_bytes(folder / name, table.to_csv().encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda file: file.write(content))


def results(sweep: Sweep) -> Table:
    """Return a row for each run: swept fields, status, how far it is, last metrics, best accuracy and its round."""
    metrics = metric_names(sweep.runs)
    with_best = BEST in metrics
    progress = ("status", "comm_round", "epoch", "samples")
    columns = ["name", *sweep.fields, *progress, *metrics, *(BEST_COLUMNS if with_best else ())]
    rows = []
    for run in sweep.runs:
        row: list[Any] = [run.name, *(run.values.get(name) for name in sweep.fields), run.status]
        row += [run.comm_round, run.last("epoch"), run.samples(run.rows[-1]) if run.rows else None]
        row += [run.last(metric) for metric in metrics]
        row += (run.best() or (None, None)) if with_best else ()
        rows.append(row)
    return Table(columns, rows)


def summary(sweep: Sweep) -> Table:
    """Return a row for each setting: its runs, n of them that are finished, and statistics of each metric.

    A metric is empty where not all finished runs of the setting have it, and NaN where one of them ended with NaN.
    """
    metrics = summary_metrics(sweep)
    parts = ("mean", "deviation", "low", "high")
    columns = [*sweep.swept, "runs", "n", *(f"{metric}_{part}" for metric in metrics for part in parts)]
    rows = []
    for setting in settings_of(sweep):
        row: list[Any] = [*setting.values.values(), len(setting.runs), len(setting.by_seed)]
        for metric in metrics:
            found = summary_of(setting, metric)
            row += [None] * 4 if found is None else [found.mean, found.deviation, found.low, found.high]
        rows.append(row)
    return Table(columns, rows)


def differences(sweep: Sweep) -> Table:
    """Return a row for each setting, reference and metric: statistics of the differences over common seeds.

    The references are the first setting and the best one, which for each metric is that of the best mean.
    """
    metrics, settings = summary_metrics(sweep), settings_of(sweep)
    columns = [*sweep.swept, "against", "reference", "metric", "pairs", "difference", "deviation", "low", "high"]
    rows = []
    for metric in metrics:
        for against, reference in (("first", settings[0] if settings else None), ("best", best(settings, metric))):
            for setting in settings:
                if reference is None or setting is reference:
                    continue
                found = difference(setting, reference, metric)
                if found is not None:
                    numbers = (found.n, found.mean, found.deviation, found.low, found.high)
                    rows.append([*setting.values.values(), against, reference.label, metric, *numbers])
    return Table(columns, rows)


def summary_metrics(sweep: Sweep) -> list[str]:
    """Return the metrics of the summary: those of the runs, and the best accuracy after the last one."""
    metrics = metric_names(sweep.runs)
    if BEST in metrics:
        metrics.insert(metrics.index(BEST) + 1, SEPARATE_BEST)
    return metrics


def values_of(setting: Setting, metric: str) -> dict[Any, float] | None:
    """Return {seed: value} of a metric of the summary."""
    return setting.best() if metric == SEPARATE_BEST else setting.last(metric)


def summary_of(setting: Setting, metric: str) -> Summary | None:
    """Summarise a metric over the seeds of a setting."""
    return summarise(list((values_of(setting, metric) or {}).values()))


def difference(setting: Setting, reference: Setting, metric: str) -> Summary | None:
    """Summarise the differences of two settings over their common seeds."""
    values, others = values_of(setting, metric), values_of(reference, metric)
    return None if values is None or others is None else paired_difference(values, others)


def best(settings: Iterable[Setting], metric: str) -> Setting | None:
    """Return the setting of the best mean, the first of equal ones; None if no mean is finite."""
    sign = 1 if lower_is_better(metric) else -1
    means = [(summary_of(setting, metric), setting) for setting in settings]
    finite = [(sign * found.mean, setting) for found, setting in means if found and math.isfinite(found.mean)]
    return min(finite, key=lambda one: one[0])[1] if finite else None


def _cell(value: Any) -> str:
    return "" if value is None else show(value)
