"""Time by span, from the table that `fastlocal profile` writes into a run directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FILE = "profile_rank0.txt"
LINE = re.compile(r"^(\w+) +([\d.]+)% +([\d.,]+)(?: +[\d.,]+)?$")


class Span(NamedTuple):
    """A span of a round: its name, its share of the time (0 to 1), and milliseconds per round."""

    name: str
    share: float
    round_ms: float


def read_spans(directory: Path) -> tuple[str, list[Span]]:
    """Return the first line of the profile's table, which says what was profiled, and its spans; empty without one."""
    try:
        lines = (directory / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", []
    found = [Span(*_values(match)) for match in map(LINE.match, lines) if match]
    return (lines[0] if lines and found else ""), found


def _values(match: re.Match[str]) -> tuple[str, float, float]:
    return match[1], float(match[2]) / 100, float(match[3].replace(",", ""))
