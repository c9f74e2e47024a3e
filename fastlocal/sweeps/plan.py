"""The runs of a sweep: their settings, their names, and which of them train together. No torch."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..config.schema import RunConfig
from .axes import Values

MAX_RUNS = 1000
"""Runs from which on a sweep needs --yes."""
MAX_NAME = 150
"""Characters of a directory's name; file systems take 255 bytes."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: Name of its directory in that of the sweep.
        values: Values of the swept fields.
        config: Its settings, with its own run directory.
    """

    name: str
    values: Values
    config: RunConfig


def make_runs(
    directory: Path, values: Sequence[Values], config_of: Callable[[Values], RunConfig], *, yes: bool
) -> list[SweepRun]:
    """Return the runs of a sweep.

    Args:
        directory: Directory of the sweep.
        values: Values of the swept fields of each run.
        config_of: Returns the checked settings of a run.
        yes: Whether any number of runs is wanted.

    Raises:
        UsageError: There are no runs or too many, two are the same, or the settings of one cannot work.
    """
    if not values:
        raise UsageError("--over: names no runs; give FIELD=VALUES, as in --over seed=0..4")
    if len(values) >= MAX_RUNS and not yes:
        raise UsageError(f"--over: {len(values):,} runs; if all of them are wanted, say so with --yes")
    names = [run_name(one) for one in values]
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"--over: {count} runs would share the directory {name}; give each value once")
    runs = []
    for name, one in zip(names, values, strict=True):
        try:
            config = config_of(one)
        except UsageError as error:
            raise UsageError(f"run {name}: {error}") from error
        runs.append(SweepRun(name, one, config.with_values(log_pth=str(directory / name))))
    return runs


def run_name(values: Values) -> str:
    """Return the name of a run's directory, such as "seed=0,client_lr=0.1"."""
    name = ",".join(f"{field}={_word(value)}" for field, value in values.items())
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{zlib.crc32(name.encode()):08x}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return re.sub(r"[^\w.+-]", "_", str(value))


def swept_fields(runs: Sequence[SweepRun]) -> dict[str, list[Any]]:
    """Return the values of every swept field in the order of the runs."""
    fields = dict.fromkeys(field for run in runs for field in run.values)
    found: dict[str, list[Any]] = {field: [] for field in fields}
    for run in runs:
        for field, value in run.values.items():
            if value not in found[field]:
                found[field].append(value)
    return found


def setting_of(values: Values) -> tuple[tuple[str, Any], ...]:
    """Return the values other than the seed: runs of one setting differ in the seed alone."""
    return tuple((field, value) for field, value in values.items() if field != "seed")
