"""metrics.jsonl and steps.jsonl: a run's numbers as lines of strict JSON.

Floats are written with all their digits. JSON has no NaN and no infinity: such numbers are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastlocal.telemetry.base import Logger


class JsonlLogger(Logger):
    """Writes one line per evaluation to `directory`/metrics.jsonl, which is there and empty from the beginning.

    Each line is on the disk before `evaluation` returns, so that a crash loses none.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / "metrics.jsonl").open("w", encoding="utf-8")

    def evaluation(self, row: dict[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class StepLog:
    """Writes `directory`/steps.jsonl: one line {step, client, rate, loss} per local step of each client."""

    def __init__(self, directory: Path) -> None:
        self._file = (directory / "steps.jsonl").open("w", encoding="utf-8")

    def write(self, rows: Iterable[tuple[int, int, float, float]]) -> None:
        """Appends rows of (step, client, learning rate, mean loss of the client's batch)."""
        keys = ("step", "client", "rate", "loss")
        self._file.writelines(_line(dict(zip(keys, row, strict=True))) for row in rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    finite = {key: value if _is_json(value) else None for key, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
