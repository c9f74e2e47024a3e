"""Values of metrics that a run is to reach, as in --stop-at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ..common.errors import UsageError, nearest

CLIENT_METRICS = tuple(
    f"{model}_{value}"
    for model in ("client", "own")
    for value in ("acc1", "weighted_acc1", "worst_acc1", "loss", "weighted_loss")
)
"""Metrics of an evaluation by client: of the global model, and of each client's own."""
METRICS = (
    *("train_acc1", "train_loss", "val_acc1", "val_loss", "best_acc", "train_acc5", "val_acc5"),
    *("train_ppl", "val_ppl"),
    *CLIENT_METRICS,
)
"""Accuracies, losses and perplexities of metrics.jsonl."""

Row = TypeVar("Row", bound=Mapping[str, Any])


class Target(NamedTuple):
    """A metric of metrics.jsonl and the value that it is to reach."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse METRIC=VALUE of --stop-at."""
        metric, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise UsageError(f"--stop-at {text}: give a metric and a number, such as val_acc1=0.97")
        if metric not in METRICS:
            known = nearest(metric, METRICS) or f"; one of {', '.join(METRICS)}"
            raise UsageError(f"--stop-at {text}: {metric!r} is no accuracy and no loss of metrics.jsonl{known}")
        return cls(metric, value)

    def check(self, topk: Sequence[int], *, tokens: bool) -> None:
        """Raise UsageError if a run never measures the metric.

        Args:
            topk: The k of the run's accuracies; empty if its targets are not labels.
            tokens: Whether its targets are tokens.
        """
        if self.metric.endswith("ppl") and not tokens:
            raise UsageError(f"--stop-at {self.metric}={self.value:g}: perplexity is of tokens; give val_loss")
        k = 5 if self.metric.endswith("acc5") else 1
        if "acc" in self.metric and k not in topk:
            why = "the run measures no acc5; give val_acc1" if topk else "targets are no labels; give val_loss"
            raise UsageError(f"--stop-at {self.metric}={self.value:g}: {why}")

    def first(self, rows: Iterable[Row]) -> Row | None:
        """Return the first row of metrics.jsonl whose metric is as good as the value; None if none is."""
        lower = lower_is_better(self.metric)
        for row in rows:
            found = row.get(self.metric)
            if found is None or (self.metric.startswith("train_") and row.get("comm_round") == 0):
                continue  # before the first round there are no training samples
            if found <= self.value if lower else found >= self.value:
                return row
        return None


def lower_is_better(metric: str) -> bool:
    """Return True for losses, perplexities and errors."""
    return metric.endswith(("loss", "ppl", "error"))
