"""The swept fields and their values: grids, ranges, fields that move together, and files. No torch."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UsageError, nearest
from ..config.schema import AREA_OF, AREAS
from ..config.serialization import convert

Values = dict[str, Any]
"""Values of one run by field."""
Axis = list[Values]
"""Values along one axis of a grid; several fields that move together are one axis."""

REFUSED = {
    "log_pth": "every run has its own directory below --log-pth",
    "device": "all runs train on one device",
    "dist_url": "all runs share their processes",
    "timeout": "all runs share their processes",
    "profile": "`fastlocal profile` profiles one run",
}
"""Fields that cannot be swept, and why."""
RANGE = re.compile(r"(-?[\d.eE+-]+?)\.\.(-?[\d.eE+-]+?)(?:([*/+])([\d.eE+-]+))?")
"""FIRST..LAST, FIRST..LAST*FACTOR, FIRST..LAST+STEP or FIRST..LAST/COUNT."""
MAX_VALUES = 100_000


def parse_axis(words: Sequence[str], flag: str) -> Axis:
    """Parse FIELD=VALUES words into one axis, the fields of several words moving together.

    Raises:
        UsageError: A word cannot be read, a field cannot be swept, or the fields have unequal numbers of values.
    """
    columns: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{flag} {word}: give FIELD=VALUES, as in {flag} seed=0..4")
        name = field_name(name, flag)
        if name in columns:
            raise UsageError(f"{flag} {name}: is given twice")
        columns[name] = [parse_value(name, value, flag) for value in _expand(text, f"{flag} {word}")]
    return join_columns(columns, flag)


def join_columns(columns: Mapping[str, Sequence[Any]], flag: str) -> Axis:
    """Return one axis on which the fields move together.

    Raises:
        UsageError: A field has no value, or the fields have unequal numbers of values.
    """
    for name, values in columns.items():
        if len(values) == 0:
            raise UsageError(f"{flag} {name}: has no value")
    lengths = {name: len(values) for name, values in columns.items()}
    if len({*lengths.values()}) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UsageError(f"{flag}: fields that move together have as many values each; {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def field_name(name: str, flag: str) -> str:
    """Return the field of a name with `-` or `_`; raises UsageError if it cannot be swept."""
    field = name.strip().lstrip("-").replace("-", "_")
    if field in REFUSED:
        raise UsageError(f"{flag} {name}: cannot be swept; {REFUSED[field]}")
    if field == "clients" or (field in AREA_OF and AREA_OF[field] != "log"):
        return field
    if field in AREA_OF:
        raise UsageError(f"{flag} {name}: cannot be swept; it says what is logged, not how a run trains")
    known = [other for other in (*AREA_OF, "clients") if other not in REFUSED]
    raise UsageError(
        f"{flag} {name}: is no field of a run{nearest(field, known)}; `fastlocal train --help-all` lists them"
    )


def parse_value(name: str, value: Any, flag: str) -> Any:
    """Convert a value, a word of the command line or a number of a file, to the type of a field."""
    hint = int if name == "clients" else typing.get_type_hints(AREAS[AREA_OF[name]])[name]
    candidates = [value] if not isinstance(value, str) else [*_meanings(value), value]
    for candidate in candidates:
        try:
            converted = convert(hint, candidate, name)
        except ValueError:
            continue
        if isinstance(converted, float) and not math.isfinite(converted):
            continue
        return converted
    raise UsageError(f"{flag} {name}={value}: {_expected(hint)}")


def _meanings(word: str) -> list[Any]:
    """Return what a word of the command line may mean, the most specific first."""
    words = {"None": None, "true": True, "false": False, "1": True, "0": False}
    found: list[Any] = [words[word]] if word in words else []
    with contextlib.suppress(ValueError):
        found.append(float(word))
    with contextlib.suppress(ValueError):
        found.insert(0, int(word))
    return found


def _expected(hint: Any) -> str:
    options = [option for option in typing.get_args(hint) or (hint,) if option is not type(None)]
    names = {int: "a whole number", float: "a number", bool: "0 or 1", str: "a name"}
    return "must be " + " or ".join(names.get(option, str(option)) for option in options)


def _expand(text: str, where: str) -> list[str]:
    """Split a list of values, and write out its ranges."""
    parts = [part.strip() for part in text.split(",")]
    if parts == [""]:
        return []
    if "" in parts:
        raise UsageError(f"{where}: has an empty value")
    return [value for part in parts for value in _range(part, where)]


def _range(text: str, where: str) -> list[str]:
    found = RANGE.fullmatch(text)
    if found is None:
        return [text]
    try:
        first, last = float(found[1]), float(found[2])
        step = 1.0 if found[4] is None else float(found[4])
    except ValueError:
        return [text]
    whole = all(re.fullmatch(r"-?\d+", part) for part in (found[1], found[2], found[4] or "1"))
    values = list(_steps(first, last, found[3] or "+", step, where))
    return [str(round(value)) if whole and value == round(value) else repr(value) for value in values]


def _steps(first: float, last: float, kind: str, step: float, where: str) -> Iterable[float]:
    if last < first:
        raise UsageError(f"{where}: the range has no value, as its end is less than its begin")
    if kind == "/":
        count = int(step)
        if count != step or not 2 <= count <= MAX_VALUES:
            raise UsageError(f"{where}: FIRST..LAST/COUNT takes a COUNT from 2 on")
        return [_short(first + (last - first) * place / (count - 1)) for place in range(count)]
    if (kind == "*" and (step <= 1 or first <= 0)) or (kind == "+" and step <= 0):
        raise UsageError(f"{where}: the range never ends; give a STEP above 0, or a FACTOR above 1 of a FIRST above 0")
    steps = math.log(last / first, step) if kind == "*" else (last - first) / step
    places = range(math.floor(steps + 1e-9) + 1)
    if len(places) > MAX_VALUES:
        raise UsageError(f"{where}: has {len(places):,} values; at most {MAX_VALUES:,} are taken")
    return [_short(first * step**place if kind == "*" else first + step * place) for place in places]


def _short(value: float) -> float:
    """Return a value without the rounding of its steps: 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")


def read_runs(path: Path) -> Axis:
    """Read the values of runs from a file: a .csv with a head, or a JSON list of {field: value}.

    Raises:
        UsageError: The file cannot be read, or has no runs.
    """
    flag = f"--runs {path}"
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else json.loads(text)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UsageError(f"{flag}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row for row in rows):
        raise UsageError(f"{flag}: must hold a list of objects, one for each run, each field: value")
    if not rows:
        raise UsageError(f"{flag}: has no runs")
    for number, row in enumerate(rows, 1):
        if {*row} != {*rows[0]} or None in row or (path.suffix == ".csv" and None in row.values()):
            raise UsageError(f"{flag}: run {number} has other fields than the first one; give every run the same")
    return [{(field := field_name(str(name), flag)): parse_value(field, value, flag) for name, value in row.items()}
            for row in rows]  # fmt: skip


def grid(axes: Sequence[Axis]) -> list[Values]:
    """Return the values of every run of a grid, the last axis fastest; raises UsageError for a field on two axes."""
    names = [name for axis in axes for name in dict.fromkeys(name for values in axis for name in values)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--over {name}: is given twice")
    return [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)]
