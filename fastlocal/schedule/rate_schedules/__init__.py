"""Rates as functions of the round, one file each: `factor(round_number, rounds)`, with the file's name.

A factor multiplies --client-lr in round `round_number`, counted from 1, of `rounds`.
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


def rate_factor(name: str, rounds: int) -> Callable[[int], float]:
    """Return the factor of each round, counted from 1, of a schedule or a file of factors.

    Args:
        name: Name of a schedule, or a file: .json with a list of numbers, or text with a number per line.
        rounds: Rounds of the run. The rate that is shown after the last round is that of the schedule's next one.

    Raises:
        UsageError: There is no such schedule, or the file has not a number for every round.
    """
    if name in NAMES:
        factor = importlib.import_module(f"{__name__}.{name}").factor
        return lambda round_number: factor(round_number, rounds)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--lr-schedule {name}: is no file{nearest(name, NAMES)}; give {', '.join(NAMES)} or a file of factors"
        )
    factors = _read(path)
    if len(factors) < rounds:
        raise UsageError(f"--lr-schedule {name}: has {len(factors)} factors for --rounds {rounds}; give one per round")
    return lambda round_number: factors[min(round_number, len(factors)) - 1]


def _read(path: Path) -> list[float]:
    flag = f"--lr-schedule {path}"
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{flag}: is larger than {MAX_BYTES // 2**20} MiB; give one number per round")
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
