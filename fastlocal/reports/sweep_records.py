"""The runs that are read together: those of one sweep, or any that are given, and the settings that they share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastlocal.common.errors import UsageError, one_line
from fastlocal.config.schema import AREA_OF

from .run_records import RunRecord, is_run, no_run_error, read_run

SWEEP_FILE = "sweep.json"
COMPUTE_FIELDS = ("precision", "seed", "wire_format")
"""Settings of the machine and of the log that change what a run computes; others make no two settings of it."""
FREQUENCIES = (*("eval_freq1", "eval_freq2", "eval_freq3", "save_freq1", "save_freq2", "save_freq3"), "eval_every")
"""Fields that move together with others, so that runs of unequal H are evaluated after as many samples."""
MAX_NAMED = 4
"""Fields up to which a setting is called by its values; with more it has its first run's name."""
Key = tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Runs that are read together.

    Attributes:
        name: Name of the sweep, or of the runs.
        fields: {field: values in order} by which the runs differ; `seed` may be among them.
        runs: The runs, in order.
        command: Words that started the sweep; empty for runs that were given one by one.
    """

    name: str
    fields: Mapping[str, Sequence[Any]]
    runs: Sequence[RunRecord]
    command: Sequence[str] = ()

    @property
    def swept(self) -> list[str]:
        """Return the fields by which settings differ: not the seed, and not when runs are evaluated and saved."""
        names = [name for name in self.fields if name != "seed"]
        return [name for name in names if name not in FREQUENCIES] or names


@dataclass
class Setting:
    """The runs that differ in nothing but their seeds.

    Attributes:
        values: {field: value} of the swept fields other than the seed.
        runs: All its runs, in order.
    """

    values: Mapping[str, Any]
    runs: list[RunRecord] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return the values as text, "start_lr=0.1,step1=4"; where there are none or many, the first run's name."""
        if 0 < len(self.values) <= MAX_NAMED:
            return ",".join(f"{name}={show(value)}" for name, value in self.values.items())
        others = len(self.runs) - 1
        return f"{self.runs[0].name}{f' and {others} more' if others else ''}"

    @property
    def by_seed(self) -> dict[Any, RunRecord]:
        """Return the finished runs by their seeds; of several runs of a seed the first, as repeats tell nothing new."""
        found: dict[Any, RunRecord] = {}
        for run in self.runs:
            if run.finished:
                found.setdefault(run.seed, run)
        return found

    def last(self, metric: str) -> dict[Any, float] | None:
        """Return {seed: last value of the metric}; None if there is no run or one of them lacks the metric."""
        found = {seed: run.last(metric) for seed, run in self.by_seed.items()}
        return _complete(found)

    def best(self) -> dict[Any, float] | None:
        """Return {seed: best accuracy}, as `last`."""
        found = {seed: run.best() for seed, run in self.by_seed.items()}
        return _complete({seed: None if one is None else one[0] for seed, one in found.items()})


def _complete(found: Mapping[Any, float | None]) -> dict[Any, float] | None:
    whole = {seed: value for seed, value in found.items() if value is not None}
    return whole if whole and len(whole) == len(found) else None


def settings_of(sweep: Sweep) -> list[Setting]:
    """Group the runs of a sweep by their settings, in order."""
    found: dict[Key, Setting] = {}
    for run in sweep.runs:
        values = {name: run.values.get(name) for name in sweep.swept}
        found.setdefault(tuple(map(show, values.values())), Setting(values)).runs.append(run)
    return list(found.values())


def collect(paths: Iterable[Path], flag: str) -> Sweep:
    """Read run directories and sweeps; a path that is given twice counts once.

    A single sweep keeps the order of its fields. The fields of other collections are those in which their settings
    differ.

    Args:
        paths: Directories.
        flag: What the user gave, for messages.

    Raises:
        UsageError: A path holds neither.
    """
    given = list({path.expanduser().resolve(): path.expanduser() for path in paths}.values())
    sweeps = [read_sweep(path, flag) if (path / SWEEP_FILE).is_file() else _alone(path, flag) for path in given]
    if len(sweeps) == 1:
        return sweeps[0]
    unique: dict[Path, RunRecord] = {}
    for run in (run for sweep in sweeps for run in sweep.runs):
        unique.setdefault(run.directory.resolve(), run)
    runs = _with_own_names(list(unique.values()))
    fields = {name: found for name, found in config_differences(runs).items() if _matters(name)}
    values = [{name: _value(run, name) for name in fields} for run in runs]
    runs = [dataclasses.replace(run, values=own) for run, own in zip(runs, values, strict=True)]
    return Sweep(f"{len(runs)} runs", fields, runs)


def read_sweep(directory: Path, flag: str = "SWEEP") -> Sweep:
    """Read the directory of a sweep, whose runs need not be finished or have begun.

    Raises:
        UsageError: sweep.json is missing or no list of runs.
    """
    path = directory / SWEEP_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        fields = {str(name): list(values) for name, values in stored["fields"].items()}
        runs = [_from_entry(directory, entry) for entry in stored["runs"]]
        name, command = str(stored.get("name", directory.name)), list(map(str, stored.get("command", ())))
    except FileNotFoundError:
        raise no_run_error(directory, flag) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{flag} {directory}: {SWEEP_FILE} cannot be read ({one_line(error, 120)})") from None
    return Sweep(name, fields, runs, command)


def _from_entry(directory: Path, entry: Mapping[str, Any]) -> RunRecord:
    name = str(entry["name"])
    run = read_run(directory / name, name)
    message = "; ".join(filter(None, [str(entry.get("message") or ""), run.message]))
    return dataclasses.replace(
        run,
        values=dict(entry["values"]),
        status=str(entry.get("status") or "waiting"),
        message=message,
    )


def _alone(path: Path, flag: str) -> Sweep:
    if not is_run(path):
        raise no_run_error(path, flag)
    run = read_run(path)
    return Sweep(run.name, {}, [run])


def config_differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Return {field: values that occur} of the settings in which runs differ, in the order of config.json.

    A run without config.json is left out; a field that an older version did not write counts as a value of its own.
    """
    known = [run for run in runs if run.settings]
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for run in known for name in run.settings):
        values = {show(value): value for value in (run.settings.get(name) for run in known)}
        if len(values) > 1 and name != "log_pth":
            found[name] = sorted(values.values(), key=_order)
    return found


def _matters(name: str) -> bool:
    """Return True if runs that differ in this field are of two settings."""
    return name in COMPUTE_FIELDS or not (name == "recipe" or AREA_OF.get(name) in ("log", "machine"))


def _value(run: RunRecord, name: str) -> Any:
    return run.settings.get(name, run.values.get(name))


def _order(value: Any) -> tuple[bool, float, str]:
    """Sort numbers by size, before texts."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else math.inf, show(value)


def _with_own_names(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Put the parent folder's name before names that occur twice, and a number where that does not tell them apart."""
    out: list[RunRecord] = []
    taken: set[str] = set()
    names = [run.name for run in runs]
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.directory.resolve().parent.name}/{run.name}"
        count = 1
        while name in taken:
            count += 1
            name = f"{name} ({count})" if count == 2 else f"{name.rpartition(' (')[0]} ({count})"
        taken.add(name)
        out.append(dataclasses.replace(run, name=name))
    return out


def show(value: Any) -> str:
    """Return a setting as text: numbers with all their digits, texts as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
