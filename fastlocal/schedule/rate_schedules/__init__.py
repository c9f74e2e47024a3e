"""Rates as functions of time, one file each: `factor(number, total)`, with the file's name.

A factor multiplies the rate in round or local step `number`, counted from 1, of `total`.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path

from ...common.errors import UsageError, nearest

NAMES = tuple(sorted(file.name for file in pkgutil.iter_modules(__path__)))
MAX_BYTES = 2**26
"""Size of the largest file of factors that is read."""


def rate_factor(name: str, total: int, unit: str = "round") -> Callable[[int], float]:
    """Return the factor of each round or local step, counted from 1, of a schedule or a file of factors.

    Args:
        name: Name of a schedule, or a file: .json with a list of numbers, or text with a number per line.
        total: Rounds or local steps of the schedule. The rate that is shown after the last one is that of the next.
        unit: What the schedule counts.

    Raises:
        UsageError: There is no such schedule, or the file has not a number for every round or step.
    """
    if name in NAMES:
        factor = importlib.import_module(f"{__name__}.{name}").factor
        return lambda number: factor(number, total)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--lr-schedule {name}: is no file{nearest(name, NAMES)}; give {', '.join(NAMES)} or a file of factors"
        )
    factors = _read(path)
    if len(factors) < total:
        what = f"--rounds {total}" if unit == "round" else f"the {total} {unit}s after the warm-up"
        raise UsageError(f"--lr-schedule {name}: has {len(factors)} factors for {what}; give one per {unit}")
    return lambda number: factors[min(number, len(factors)) - 1]


def _read(path: Path) -> list[float]:
    flag = f"--lr-schedule {path}"
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{flag}: is larger than {MAX_BYTES // 2**20} MiB; give a number per line")
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else list(map(float, text.split()))
        if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
            raise ValueError("a list of numbers is expected")
        factors = list(map(float, values))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{flag}: cannot be read as numbers ({' '.join(str(error).split())[:120]})") from error
    for number, factor in enumerate(factors, 1):
        if not (math.isfinite(factor) and factor >= 0):
            raise UsageError(f"{flag}: factor {number} is {factor}; give finite numbers, 0 or more")
    return factors
