"""Interface of all loggers of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """A run before its first round.

    Attributes:
        name: Name of the recipe.
        directory: Run directory.
        config: The resolved RunConfig as nested dictionaries.
        clients: Number of clients.
        rounds: Communication rounds, including a last one without averaging.
        samples: Training samples of all clients over the whole run.
        samples_done: Training samples before this process, if the run continues.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    clients: int
    rounds: int
    samples: int
    samples_done: int = 0


@dataclass(frozen=True)
class RoundReport:
    """Results of one communication round.

    Attributes:
        comm_round: Averages so far.
        epoch: Epoch counter.
        local_steps: Local steps of the round.
        learning_rate: Rate of each client.
        train_loss: Mean over the samples of all clients.
        train_acc1: Accuracy over these samples, or None if targets are not labels.
        samples: Training samples of all clients.
        clients: Clients that took part, or None if all do in every round.
    """

    comm_round: int
    epoch: float
    local_steps: int
    learning_rate: float
    train_loss: float
    train_acc1: float | None
    samples: int
    clients: int | None = None


class Logger:
    """Base class of loggers; every method does nothing by default."""

    def start(self, summary: RunSummary) -> None:
        """Called when the run directory exists, before the first round."""

    def round(self, report: RoundReport) -> None:
        """Called after each communication round."""

    def evaluation(self, row: dict[str, Any]) -> None:
        """Called after each evaluation of the averaged model; `row` is the line of metrics.jsonl."""

    def clients(self, rows: Sequence[dict[str, Any]]) -> None:
        """Called after each evaluation by client; `rows` are the lines of clients.jsonl."""

    def checkpoint(self, path: Path) -> None:
        """Called after a model was written to `path`."""

    def message(self, text: str) -> None:
        """Show one log line to the user."""

    def close(self) -> None:
        """Called when the run ends, also after an error."""

    def state(self) -> dict[str, Any]:
        """Return the logger's state as JSON values, under keys of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state of `state`; called before `start`."""


class Loggers(Logger):
    """Pass every call on to each of `loggers`, in order.

    Args:
        loggers: The loggers.
        words: Translates each message, e.g. flags into arguments.
    """

    def __init__(self, loggers: Sequence[Logger], words: Callable[[str], str] = str) -> None:
        self.loggers = list(loggers)
        self._words = words

    def start(self, summary: RunSummary) -> None:
        for logger in self.loggers:
            logger.start(summary)

    def round(self, report: RoundReport) -> None:
        for logger in self.loggers:
            logger.round(report)

    def evaluation(self, row: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.evaluation(row)

    def clients(self, rows: Sequence[dict[str, Any]]) -> None:
        for logger in self.loggers:
            logger.clients(rows)

    def checkpoint(self, path: Path) -> None:
        for logger in self.loggers:
            logger.checkpoint(path)

    def message(self, text: str) -> None:
        for logger in self.loggers:
            logger.message(self._words(text))

    def state(self) -> dict[str, Any]:
        return {name: value for logger in self.loggers for name, value in logger.state().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.restore(state)

    def close(self) -> None:
        with ExitStack() as stack:  # closes all of them even if one fails
            for logger in reversed(self.loggers):
                stack.callback(logger.close)
