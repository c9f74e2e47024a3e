"""Successive halving: after rounds R, 2 R, 4 R, ... the worse half of the settings stops.

Source: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
All runs reach a round before it is decided, so that the choice depends neither on their order nor on interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..common.errors import UsageError, nearest
from .plan import SweepRun, setting_of

SMALLER_IS_BETTER = ("val_loss", "train_loss")
METRICS = ("val_acc1", "val_acc5", "val_loss", "train_acc1", "train_acc5", "train_loss", "best_acc")
"""Keys of metrics.jsonl by which runs can be compared."""


def refuse_metric(name: str) -> None:
    """Raise UsageError for a --metric that no run writes."""
    if name not in METRICS:
        raise UsageError(f"--metric {name}: is none of {', '.join(METRICS)}{nearest(name, METRICS)}")


@dataclass(frozen=True)
class Halving:
    """When and by what runs are chosen.

    Attributes:
        first: The first round after which runs are chosen.
        metric: Key of metrics.jsonl; losses count as better if smaller.
    """

    first: int
    metric: str

    def rounds(self) -> Iterator[int]:
        """Yield the rounds without end."""
        number = self.first
        while True:
            yield number
            number *= 2

    def losers(self, runs: Sequence[SweepRun], results: Mapping[str, float | None], number: int) -> dict[str, str]:
        """Return the runs that stop after a round, with the reason; at least one setting goes on.

        Args:
            runs: The runs that reached the round.
            results: The metric of each by name; None if it was not evaluated yet, or has failed.
            number: The round.
        """
        settings: dict[object, list[SweepRun]] = {}
        for run in runs:
            settings.setdefault(setting_of(run.values), []).append(run)
        if len(settings) < 2:
            return {}
        means = {setting: self._mean([results[run.name] for run in members]) for setting, members in settings.items()}
        order = sorted(means, key=means.__getitem__, reverse=True)  # stable: equal settings keep their order
        kept = math.ceil(len(order) / 2)
        least = f"the worst that goes on has {abs(means[order[kept - 1]]):.4g}"
        return {
            run.name: f"after round {number} with {self.metric} {abs(means[setting]):.4g}; {least}"
            for setting in order[kept:]
            for run in settings[setting]
        }

    def _mean(self, values: Sequence[float | None]) -> float:
        """Return the mean over seeds, larger for better; minus infinity if a run has no finite value."""
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if len(finite) < len(values):
            return -math.inf
        sign = -1.0 if self.metric in SMALLER_IS_BETTER else 1.0
        return sign * math.fsum(finite) / len(finite)
