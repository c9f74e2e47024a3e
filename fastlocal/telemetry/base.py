"""The one interface behind which everything that watches a run stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunSummary:
    """What a run is about to do.

    config: the resolved RunConfig as nested plain dictionaries
    rounds: communication rounds, a last one without averaging included
    samples: training samples of all clients over the whole run
    samples_done: those before this process, in a run that goes on
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
    """One finished communication round.

    train_loss: mean over the samples of every client in this round
    train_acc1: fraction of them predicted right, None where targets are not labels
    samples: training samples of all clients in this round
    """

    comm_round: int
    epoch: int
    local_steps: int
    learning_rate: float
    train_loss: float
    train_acc1: float | None
    samples: int


class Logger:
    """Watches a run; every method does nothing unless a subclass cares."""

    def start(self, summary: RunSummary) -> None:
        """The run directory exists and the first round is about to begin."""

    def round(self, report: RoundReport) -> None:
        """A communication round ended."""

    def evaluation(self, row: dict[str, Any]) -> None:
        """The averaged model was evaluated; `row` is the line of metrics.jsonl."""

    def checkpoint(self, path: Path) -> None:
        """A model was written to `path`."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def close(self) -> None:
        """The run ended, in whatever way."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on after what was logged so far, as JSON holds it, under names of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The run goes on from where `state` was asked for; comes before `start`."""


class Loggers(Logger):
    """Passes every call on to each of `sinks`, in order.

    words: how a message is said: as it is, or with other names for what it speaks of
    """

    def __init__(self, sinks: Sequence[Logger], words: Callable[[str], str] = str) -> None:
        self.sinks = list(sinks)
        self._words = words

    def start(self, summary: RunSummary) -> None:
        for sink in self.sinks:
            sink.start(summary)

    def round(self, report: RoundReport) -> None:
        for sink in self.sinks:
            sink.round(report)

    def evaluation(self, row: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.evaluation(row)

    def checkpoint(self, path: Path) -> None:
        for sink in self.sinks:
            sink.checkpoint(path)

    def message(self, text: str) -> None:
        for sink in self.sinks:
            sink.message(self._words(text))

    def state(self) -> dict[str, Any]:
        return {name: value for sink in self.sinks for name, value in sink.state().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.restore(state)

    def close(self) -> None:
        with ExitStack() as stack:  # one that fails keeps none of the others open
            for sink in reversed(self.sinks):
                stack.callback(sink.close)
