"""Evaluation, checkpoints and log lines of the global model."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..aggregation.global_model import GlobalModel
from ..checkpoint.model_file import save_model
from ..common import interrupts
from ..common.errors import NonFiniteLoss
from ..config.targets import Target
from ..data.sample_streams import SampleStreams
from ..data.sources.base import BatchRequest, Source
from ..models.client_random.mode import ClientRandom
from ..schedule.cohort import ClientWeights
from ..schedule.cursor import TrainingCursor, TrainStats
from ..schedule.rounds import RoundSchedule
from ..telemetry.base import Logger, RoundReport
from .evaluation import Evaluation, RandomContext, perplexity


@dataclass
class Evaluator:
    """Evaluate, save and log the global model after a round.

    Every rank calls the same methods, so that all hold the same model; only rank 0 writes.

    Attributes:
        evaluate: Evaluates the model on the test set.
        topk: The k of the accuracies; empty if the targets are not labels.
        tokens: Whether the targets are tokens, whose losses are reported as perplexities too.
        stop_on_nan: Whether a non-finite loss ends the run.
        module_seed: Seed for a module that draws random numbers outside client_random, or None.
        draws_seed: Seed of the draws that client_random covers, or None if the model makes none.
        writes: Whether this process writes files.
        owned: Number of samples that clients own, or None if nobody owns any.
        weights: Weights of the clients in the mean.
        stop_at: Value of a metric at which the run ends, or None.
        history: The lines of metrics.jsonl.
    """

    global_model: GlobalModel
    source: Source
    streams: SampleStreams
    evaluate: Callable[[RandomContext], Evaluation]
    logger: Logger
    directory: Path
    bn_batches: int
    topk: tuple[int, ...]
    tokens: bool
    stop_on_nan: bool
    module_seed: int | None
    draws_seed: int | None
    writes: bool
    weights: ClientWeights
    owned: int | None = None
    stop_at: Target | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    _warned: bool = False

    def load_global_model(self, steps_done: int) -> None:
        """Load the global parameters into the plain module and re-estimate BatchNorm, unless this is done already.

        Args:
            steps_done: Local steps of every client so far.
        """
        if not self.global_model.loaded:
            self.seed_module(steps_done, self.streams.population)
            with self._random_context(steps_done, 0):
                self.global_model.load(self._batchnorm_inputs(steps_done))

    def save_latest(self, steps_done: int) -> None:
        """Write the global model to latest.pt; with --on-nan stop, a non-finite model does not replace it."""
        self.load_global_model(steps_done)
        if self.global_model.is_finite() or not self.stop_on_nan:
            self.save("latest.pt", steps_done)

    def save(self, name: str, steps_done: int) -> None:
        """Write the global model to the file `name`."""
        self.load_global_model(steps_done)
        if self.writes:
            path = self.directory / name
            save_model(path, self.global_model.module.state_dict())
            self.logger.checkpoint(path)

    def report(
        self, schedule: RoundSchedule, cursor: TrainingCursor, by_client: Mapping[str, float] | None = None
    ) -> None:
        """Evaluate and save the global model, and add a line to the history.

        Args:
            schedule: The round.
            cursor: The run after the round.
            by_client: Statistics of an evaluation by client, or None.
        """
        self.load_global_model(cursor.steps_done)
        self.seed_module(cursor.steps_done, self.streams.population + 1)
        with self.global_model.preserve_tensors():
            result = self.evaluate(functools.partial(self._random_context, cursor.steps_done + 1))
        if not (math.isfinite(result.loss) and self.global_model.is_finite()):
            self.stop_or_warn(schedule, "averaged model", f"the test loss is {result.loss}")
        loss, accuracies = cursor.stats.mean(len(self.topk))
        cursor.stats = TrainStats()
        row: dict[str, Any] = {"epoch": self.epoch(schedule, cursor), "comm_round": schedule.comm_round}
        if self.topk:
            cursor.best_acc = max(cursor.best_acc, result.accuracies[0])
        row |= self._accuracies("train", accuracies) | {"train_loss": loss}
        row |= self._accuracies("val", result.accuracies) | {"val_loss": result.loss}
        if self.tokens:
            row |= {"train_ppl": perplexity(loss), "val_ppl": perplexity(result.loss)}
        row |= {"best_acc": cursor.best_acc if self.topk else None}
        row |= {"iter": schedule.iteration, "lr": schedule.learning_rate}
        if self.owned is not None:
            row |= self._participation(schedule) | dict(by_client or {})
        self.save_latest(cursor.steps_done)
        if schedule.save_as is not None:
            self.save(schedule.save_as, cursor.steps_done)
        self.history.append(row)

    def epoch(self, schedule: RoundSchedule, cursor: TrainingCursor) -> float:
        """Return the epochs so far: samples trained per owned sample, or the count of the schedule."""
        return schedule.epoch if self.owned is None else cursor.samples / self.owned

    def round_report(
        self, schedule: RoundSchedule, cursor: TrainingCursor, stats: TrainStats, rate: float, clients: int, steps: int
    ) -> RoundReport:
        """Return the report of a round.

        Args:
            schedule: The round.
            cursor: The run after the round.
            stats: Sums over the clients of the round.
            rate: Rate of the last local step.
            clients: Number of clients that took part.
            steps: The most steps that one of them took.
        """
        loss, correct = stats.mean(len(self.topk))
        return RoundReport(
            schedule.number,
            self.epoch(schedule, cursor),
            steps,
            rate,
            loss,
            correct[0] if self.topk else None,
            stats.samples,
            clients if clients < self.streams.population else None,
        )

    def reaches_target(self) -> bool:
        """Return True if the last evaluation reaches --stop-at, and say so."""
        if self.stop_at is None or self.stop_at.first(self.history[-1:]) is None:
            return False
        metric, value = self.stop_at
        found = self.history[-1][metric]
        self.logger.message(f"{metric} is {found:.6g}: the run ends by --stop-at {metric}={value:g}")
        return True

    def _participation(self, schedule: RoundSchedule) -> dict[str, Any]:
        """Return the clients of a round, its samples, and its least and greatest weight; zeros before the first."""
        if not schedule.local_steps:
            return {"clients": 0, "samples": 0, "min_weight": 0.0, "max_weight": 0.0}
        cohort = self.streams.cohort(schedule.first_step)
        clients = len(cohort)
        weights = self.weights.of(cohort) if clients else None
        least, greatest = (
            (1 / max(clients, 1),) * 2 if weights is None else (weights.min().item(), weights.max().item())
        )
        samples = self.streams.samples_of(schedule.first_step, schedule.local_steps)
        return {"clients": clients, "samples": samples, "min_weight": least, "max_weight": greatest}

    def stop_or_warn(self, schedule: RoundSchedule, who: str, what: str) -> None:
        """Raise NonFiniteLoss, or warn once with --on-nan continue."""
        where = f"round {schedule.number}, {who}: {what}"
        if self.stop_on_nan:
            raise NonFiniteLoss(where)
        if self.writes and not self._warned:
            self.logger.message(f"{where}; going on (--on-nan continue), said once")
            self._warned = True

    def seed_module(self, step: int, stream: int) -> None:
        """Seed torch, random and NumPy from (module_seed, step, stream), so that a resumed run draws the same."""
        if self.module_seed is not None:
            mixed = (self.module_seed * 1_000_003 + step) * 1_000_003 + stream
            torch.manual_seed(mixed % 2**63)
            random.seed(mixed)
            np.random.seed(mixed % 2**32)

    def _random_context(self, step: int, batch: int) -> AbstractContextManager[Any]:
        """Return the random numbers of a forward pass outside training, under client numbers that no client has."""
        if self.draws_seed is None:
            return nullcontext()
        device = self.global_model.flat_params.device
        client = torch.tensor(self.streams.population + batch, device=device)
        return ClientRandom(self.draws_seed, client, torch.tensor(step, device=device))

    def _batchnorm_inputs(self, steps_done: int) -> Iterator[Tensor]:
        device = self.source.index_device
        for batch in self.source.feed(
            BatchRequest(ids.unsqueeze(0).to(device), torch.tensor([client], device=device), step)
            for ids, client, step in self.streams.estimation_batches(steps_done, self.bn_batches)
        ):
            interrupts.check_signals()
            yield batch.inputs[0]

    def _accuracies(self, split: str, values: list[float] | tuple[float, ...]) -> dict[str, float | None]:
        if not self.topk:
            return {f"{split}_acc1": None}
        return {f"{split}_acc{k}": value for k, value in zip(self.topk, values, strict=True)}
