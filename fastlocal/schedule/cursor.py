"""Progress of a run: all state beside tensors that changes from round to round, exact in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Stage = Literal["start", "train", "report", "files"]


@dataclass
class TrainStats:
    """Sums over the samples of every client, on the host.

    Attributes:
        loss: Sum of the samples' losses.
        correct: Correct predictions, for each k of the accuracies.
        samples: Number of samples.
        ignored: Samples whose target does not count.
        empty: Samples of batches without a loss.
    """

    loss: float = 0.0
    correct: list[float] = field(default_factory=list)
    samples: int = 0
    ignored: int = 0
    empty: int = 0

    def add(self, other: TrainStats) -> None:
        """Add the sums of other steps."""
        if not other.samples:
            return
        self.loss += other.loss
        if other.correct:  # empty without samples, and for targets that are not labels
            before = self.correct or [0.0] * len(other.correct)
            self.correct = [a + b for a, b in zip(before, other.correct, strict=True)]
        self.samples += other.samples
        self.ignored += other.ignored
        self.empty += other.empty

    def mean(self, count: int) -> tuple[float, list[float]]:
        """Return the mean loss of the batches with a loss, and `count` accuracies; zeros without samples."""
        with_loss, counted = self.samples - self.empty, self.samples - self.ignored
        loss = self.loss / with_loss if with_loss else 0.0
        return loss, [value / counted for value in self.correct] if counted else [0.0] * count


@dataclass
class PartialRound:
    """Results of the current round's finished chunks.

    Attributes:
        done: Rows of each chunk, by their places in the cohort; a range, unless they are in the order of their steps.
        stats: Sums over these clients.
        bad: (step, client, text) of each non-finite value.
        losses: [local_steps, clients] of each chunk on the CPU, if every step is logged; 0 after a client's last step.
        own_results: Results of these clients' own models on their held-out samples, as JSON values.
    """

    done: list[range | tuple[int, ...]] = field(default_factory=list)
    stats: TrainStats = field(default_factory=TrainStats)
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    own_results: list[list[Any]] = field(default_factory=list)


@dataclass
class TrainingCursor:
    """Position of a run.

    Attributes:
        stage: Next stage of the round: "train", "report" (evaluation) or "files"; "start" before the first one.
        first_step: Local steps before the current round.
        rounds_before: Averages before the current round.
        steps_done: Local steps of every client so far.
        comm_round: Averages so far.
        round_end: Local steps at the end of the current round.
        best_acc: Best test accuracy so far.
        samples: Samples that clients trained on so far.
        own_results: Results of the own models of the round's clients, until they are logged.
        stats: Sums since the last evaluation.
        so_far: Results of the current round's finished chunks.
    """

    stage: Stage = "start"
    first_step: int = 0
    rounds_before: int = 0
    steps_done: int = 0
    comm_round: int = 0
    round_end: int = 0
    best_acc: float = 0.0
    samples: int = 0
    own_results: Sequence[list[Any]] = ()
    stats: TrainStats = field(default_factory=TrainStats)
    so_far: PartialRound = field(default_factory=PartialRound)

    @property
    def between_rounds(self) -> bool:
        """Return True if no round is in progress."""
        return self.stage == "start" or (self.stage == "train" and not self.so_far.done)

    def state_dict(self) -> dict[str, Any]:
        """Return all fields but the losses, as JSON values."""
        shared = {_key(spec.name): getattr(self, spec.name) for spec in dataclasses.fields(self)[:-2]}
        so_far = self.so_far
        return shared | {
            "stats": dataclasses.asdict(self.stats),
            "so_far": {
                "done": [rows_to_json(rows) for rows in so_far.done],
                "stats": dataclasses.asdict(so_far.stats),
                "bad": list(so_far.bad),
                "own_results": list(so_far.own_results),
            },
        }

    @classmethod
    def from_state_dict(cls, numbers: Mapping[str, Any], losses: list[Tensor]) -> TrainingCursor:
        """Restore a cursor from `state_dict` and the losses of the unfinished round."""
        so_far = numbers["so_far"]
        bad = [(step, client, what) for step, client, what in so_far["bad"]]
        return cls(
            **{
                spec.name: numbers.get(_key(spec.name), spec.default)  # earlier versions have fewer
                for spec in dataclasses.fields(cls)[:-2]
            },
            stats=TrainStats(**numbers["stats"]),
            so_far=PartialRound(
                [rows_from_json(rows) for rows in so_far["done"]],
                TrainStats(**so_far["stats"]),
                bad,
                losses,
                list(so_far.get("own_results", ())),
            ),
        )


def rows_to_json(rows: Sequence[int]) -> Any:
    """Return the rows of a chunk as JSON: [first, last + 1] of a range, as version 0.1, else {"rows": [...]}."""
    return [rows.start, rows.stop] if isinstance(rows, range) else {"rows": list(rows)}


def rows_from_json(stored: Any) -> range | tuple[int, ...]:
    """Return the rows of `rows_to_json`."""
    return tuple(stored["rows"]) if isinstance(stored, dict) else range(*stored)


def _key(name: str) -> str:
    """Return the key of a field in resume.pt, which keeps the names of version 0.1."""
    return {"steps_done": "trained"}.get(name, name)
