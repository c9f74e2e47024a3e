"""Evaluations as TensorBoard scalars. tensorboard is imported only when a logger is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastlocal.common.errors import UsageError
from fastlocal.telemetry.base import Logger, RunSummary

AXIS = "comm_round"


class TensorboardLogger(Logger):
    """Write an event file into `directory` from the start of the run: all numbers of each evaluation, by comm_round.

    The constructor writes nothing.

    Raises:
        UsageError: tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "--tensorboard needs the package tensorboard: pip install 'fastlocal[tensorboard]'"
            ) from error
        self._directory = directory
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._last: int | None = None
        self._hide_from: int | None = None

    def state(self) -> dict[str, Any]:
        return {"tensorboard": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        self._last = state.get("tensorboard")
        self._hide_from = 0 if self._last is None else self._last + 1

    def start(self, summary: RunSummary) -> None:
        self._writer = self._make_writer(log_dir=str(self._directory), purge_step=self._hide_from)

    def evaluation(self, row: dict[str, Any]) -> None:
        assert self._writer is not None, "an evaluation before start"
        for key, value in row.items():
            if key != AXIS and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, global_step=row[AXIS])
        self._writer.flush()
        self._last = row[AXIS]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
