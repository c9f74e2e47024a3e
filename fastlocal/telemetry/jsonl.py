"""metrics.jsonl, clients.jsonl and steps.jsonl: one strict JSON object per line.

Floats keep all their digits. JSON has no NaN and no infinity: they are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from fastlocal.common.errors import UsageError
from fastlocal.telemetry.base import Logger


class JsonlLogger(Logger):
    """Write one line per evaluation to `directory`/metrics.jsonl, which exists from the start.

    Each line is flushed to the disk before `evaluation` returns, so that a crash loses none.

    Args:
        directory: Run directory.
        size: Bytes of the file to keep, if the run continues.
    """

    def __init__(self, directory: Path, size: int = 0) -> None:
        self._file = _open(directory / "metrics.jsonl", size)

    def evaluation(self, row: dict[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def state(self) -> dict[str, Any]:
        return {"metrics.jsonl": _size(self._file)}

    def close(self) -> None:
        self._file.close()


class ClientLog(Logger):
    """Write `directory`/clients.jsonl: one line per evaluation of each client, flushed to the disk.

    Args:
        directory: Run directory.
        size: Bytes of the file to keep, if the run continues.
    """

    def __init__(self, directory: Path, size: int = 0) -> None:
        self._file = _open(directory / "clients.jsonl", size)

    def clients(self, rows: Sequence[dict[str, Any]]) -> None:
        self._file.writelines(map(_line, rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def state(self) -> dict[str, Any]:
        return {"clients.jsonl": _size(self._file)}

    def close(self) -> None:
        self._file.close()


class StepLog:
    """Write `directory`/steps.jsonl: one line {step, client, rate, loss} per local step of each client.

    Args:
        directory: Run directory.
        size: Bytes of the file to keep, if the run continues.
    """

    def __init__(self, directory: Path, size: int = 0) -> None:
        self._file = _open(directory / "steps.jsonl", size)

    def write(self, rows: Iterable[tuple[int, int, float, float]]) -> None:
        """Append rows of (step, client, learning rate, mean loss of the client's batch)."""
        keys = ("step", "client", "rate", "loss")
        self._file.writelines(_line(dict(zip(keys, row, strict=True))) for row in rows)
        self._file.flush()

    def state(self) -> dict[str, Any]:
        """Return the state, as Logger.state."""
        return {"steps.jsonl": _size(self._file)}

    def sync(self) -> None:
        """Flush the file to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path, size: int) -> list[dict[str, Any]]:
    """Return the rows in the first `size` bytes of a metrics.jsonl; a loss or perplexity of null becomes NaN."""
    rows = [json.loads(line) for line in path.read_bytes()[:size].splitlines()]
    for row in rows:
        row.update({key: math.nan for key in row if key.endswith(("_loss", "_ppl")) and row[key] is None})
    return rows


def _open(path: Path, size: int) -> TextIO:
    file = path.open("a", encoding="utf-8")
    if _size(file) < size:
        raise UsageError(f"--continue: {path} is shorter than when the run was saved; --overwrite 1 starts afresh")
    os.ftruncate(file.fileno(), size)
    return file


def _size(file: TextIO) -> int:
    return os.fstat(file.fileno()).st_size


def _line(row: dict[str, Any]) -> str:
    finite = {key: value if _is_json(value) else None for key, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _is_json(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
