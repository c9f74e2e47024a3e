"""Records of one run directory for reports: settings, rows of metrics, and what is missing or damaged."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError, one_line
from fastlocal.config.targets import Target, lower_is_better

COUNTERS = ("epoch", "comm_round", "iter", "lr", "clients", "samples", "min_weight", "max_weight", "best_acc")
"""Values of a row that are no metrics; the best accuracy is computed from the rows."""
BEST = "val_acc1"
"""Metric whose best value every table has."""
MARKERS = ("config.json", "metrics.jsonl")
"""Files by which a run directory is told."""

Row = Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """One run as its directory and the sweep's list tell it.

    Attributes:
        name: Name that tables and plots show.
        directory: Run directory, which need not exist yet.
        settings: {field: value} of config.json; empty without that file.
        values: {field: value} by which the runs read together differ.
        rows: Rows of metrics.jsonl, numbers only, by rounds. A loss of null is NaN.
        status: Status in sweep.json; "" for a run that was given by itself.
        message: Message in sweep.json, or what cannot be read; else "".
    """

    name: str
    directory: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    status: str = ""
    message: str = ""

    @property
    def finished(self) -> bool:
        """Return True if the run counts in statistics: it is done, or was given by itself."""
        return bool(self.rows) and self.status in ("done", "")

    @property
    def seed(self) -> Any:
        """Return the seed; of a run that does not say it, its name."""
        return self.values.get("seed", self.settings.get("seed", self.name))

    @property
    def comm_round(self) -> int | None:
        """Return the communication rounds of the last row; None without one."""
        return int(self.rows[-1].get("comm_round", 0)) if self.rows else None

    def last(self, metric: str) -> float | None:
        """Return the metric's value in the last row; None if it has none."""
        return self.rows[-1].get(metric) if self.rows else None

    def best(self, metric: str = BEST) -> tuple[float, int] | None:
        """Return the metric's best value and its first round; None if it has no finite value."""
        found = [(row[metric], int(row.get("comm_round", 0))) for row in self.rows if _is_finite(row.get(metric))]
        sign = 1 if lower_is_better(metric) else -1
        return min(found, key=lambda one: (sign * one[0], one[1])) if found else None

    def first_at(self, metric: str, target: float) -> Row | None:
        """Return the first row whose metric is as good as `target`; None if no row is."""
        return Target(metric, target).first(self.rows)

    def samples(self, row: Row) -> int | None:
        """Return the training samples of all clients up to a row; None if the files do not tell them.

        Where clients own samples an epoch is as many samples as they own. Else all clients take the same steps, which
        `iter` counts if H is the same in all phases.
        """
        if self.settings.get("partition", "shared") != "shared":
            owned = self._owned
            return None if owned is None or "epoch" not in row else round(row["epoch"] * owned)
        batch, steps = self.settings.get("total_batch_size"), {self.settings.get(f"step{phase}") for phase in (1, 2, 3)}
        if batch is None or "iter" not in row or len(steps) > 1 or self.settings.get("clients_drop"):
            return None
        return int(row["iter"] * batch)

    @cached_property
    def _owned(self) -> int | None:
        """Number of samples that clients own and train on, by the run's partition."""
        try:
            owned = _samples(self.directory / "partition.npz")
            path = self.directory / "client_test.npz"
            return owned - (_samples(path) if path.exists() else 0)
        except (OSError, KeyError, IndexError, ValueError, TypeError, zipfile.BadZipFile):
            return None


def _samples(path: Path) -> int:
    """Return the number of samples in a file of a partition."""
    with np.load(path, allow_pickle=False) as held:
        return int(held["offsets"][-1])


def metric_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the metrics of all runs: test before training, accuracies before losses, then by name."""
    found = {name for record in records for row in record.rows for name in row if name not in COUNTERS}
    order = ("val_acc1", "val_loss", "train_acc1", "train_loss")
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def is_run(directory: Path) -> bool:
    """Return True if a folder holds a run."""
    return any((directory / name).is_file() for name in MARKERS)


def read_run(directory: Path, name: str | None = None) -> RunRecord:
    """Read a run directory; files that are missing or damaged are left out, and its message names them."""
    settings, wrong = read_settings(directory / "config.json")
    rows, torn = read_rows(directory / "metrics.jsonl")
    name = name or directory.resolve().name
    return RunRecord(name, directory, settings, rows=rows, message="; ".join(filter(None, [wrong, torn])))


def read_settings(path: Path) -> tuple[dict[str, Any], str]:
    """Return {field: value} of a config.json of any version, and what is wrong with the file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path.name} cannot be read ({one_line(error, 120)})"
    if not isinstance(stored, dict):
        return {}, f"{path.name} is no JSON object"
    settings: dict[str, Any] = {}
    for name, value in stored.items():
        settings |= value if isinstance(value, dict) else {"recipe" if name == "name" else name: value}
    return settings, ""


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Return the rows of a metrics.jsonl, and what is wrong with the file.

    A last line that is torn belongs to a run that is writing it, and is left out, as are values other than numbers, and
    the training metrics before the first round, which have no samples.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"{path.name} cannot be read ({one_line(error, 120)})"
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            stored = json.loads(line)
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            if number == len(lines):
                break
            return rows, f"line {number} of {path.name} is no JSON object; it and those after it are left out"
        rows.append(_row(stored))
    return rows, ""


def _row(stored: Mapping[str, Any]) -> Row:
    row: dict[str, float] = {}
    for name, value in stored.items():
        if value is None and lower_is_better(name):
            row[name] = math.nan
        elif isinstance(value, int | float) and not isinstance(value, bool):
            row[name] = float(value)
    if row.get("comm_round") == 0:
        row = {name: value for name, value in row.items() if not name.startswith("train_")}
    return row


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def no_run_error(path: Path, flag: str) -> UsageError:
    """Return the error for a path that is neither a run nor a sweep."""
    if not path.exists():
        return UsageError(f"{flag} {path}: does not exist; give a run directory or the directory of a sweep")
    if not path.is_dir():
        return UsageError(f"{flag} {path}: is a file; give a run directory or the directory of a sweep")
    return UsageError(f"{flag} {path}: holds no run (config.json, metrics.jsonl) and no sweep (sweep.json)")
