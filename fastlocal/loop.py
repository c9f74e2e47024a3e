"""Communication rounds: plan, local steps, average, evaluate, save, log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import interrupts
from .averaged import AveragedModel
from .averaging.local_mean import LocalMean
from .checkpoint import save_model
from .data.sources.base import Source, Wanted
from .data.streams import Streams
from .errors import NonFiniteLoss
from .evaluation import Evaluation
from .executors.base import Executor, RoundPlan
from .lookahead import Lookahead
from .progress import Progress, Round
from .stack import ClientStack, MomentumStore
from .telemetry.base import Logger, RoundReport
from .telemetry.jsonl import StepLog
from .telemetry.trace import span

INPUT_BOUND = 0.1


@dataclass
class TrainStats:
    """Sums over every client's samples since the last evaluation, on the host."""

    loss: float = 0.0
    correct: list[float] = field(default_factory=list)
    samples: int = 0

    def add(self, other: TrainStats) -> None:
        """Add another stretch's sums."""
        self.loss += other.loss
        self.correct = [a + b for a, b in zip(self.correct or [0.0] * len(other.correct), other.correct, strict=True)]
        self.samples += other.samples

    def mean(self, count: int) -> tuple[float, list[float]]:
        """Mean loss and `count` accuracies, zero where nothing was added."""
        if not self.samples:
            return 0.0, [0.0] * count
        return self.loss / self.samples, [value / self.samples for value in self.correct]


@dataclass
class Waiting:
    """Seconds that local steps took since the last evaluation, and how many of them went by without data."""

    waited: float = 0.0
    taken: float = 0.0

    def add(self, waited: float, taken: float) -> None:
        """One round's."""
        self.waited += waited
        self.taken += taken

    def take(self) -> str | None:
        """A line for a person where it was more than INPUT_BOUND of the time; starts afresh."""
        share = min(1.0, self.waited / self.taken) if self.taken else 0.0
        self.waited = self.taken = 0.0
        if share <= INPUT_BOUND:
            return None
        return f"input-bound: {share:.0%} of the step waiting for data (more workers: --nw; further ahead: --prefetch)"


@dataclass
class Loop:
    """A run whose parts are built. `run` trains it to its end.

    chunk: clients resident at once        momentum: None where there is none
    evaluate: the model on the test set        topk: the k of accuracies, empty where targets are not labels
    steps: where every local step is written, or None        stop_on_nan: whether a non-finite loss ends the run
    module_seed: seed of a module that draws random numbers itself, or None
    """

    progress: Progress
    streams: Streams
    source: Source
    executor: Executor
    averaged: AveragedModel
    momentum: MomentumStore | None
    evaluate: Callable[[], Evaluation]
    logger: Logger
    steps: StepLog | None
    directory: Path
    clients: int
    chunk: int
    bn_batches: int
    topk: tuple[int, ...]
    stop_on_nan: bool
    module_seed: int | None
    history: list[dict[str, Any]] = field(default_factory=list)
    comm_round: int = 0
    best_acc: float = 0.0

    def __post_init__(self) -> None:
        row = self.averaged.row
        self._params = torch.empty(self.chunk, row.numel(), dtype=row.dtype, device=row.device)
        self._mean = LocalMean(row.numel(), self.clients, row.device)
        self._stats = TrainStats()
        self._waiting = Waiting()
        self._step = 0
        self._loaded = False
        self._warned = False

    def run(self, eval_on_start: bool) -> None:
        """Every round of the plan."""
        if eval_on_start:
            self._report(self.progress.start())
        self._rounds = Lookahead(self.progress.rounds())
        for planned in self._rounds:
            for name in planned.phase_files[0]:
                self._save(name)
            self._train(planned)
            if planned.evaluate:
                self._report(planned)
            for name in planned.phase_files[1]:
                self._save(name)

    def load_averaged(self) -> None:
        """Bring the plain module up to the averaged row, BatchNorm re-estimated, unless it is there already."""
        if not self._loaded:
            epoch = max(self._step - 1, 0) // self.progress.steps_per_epoch
            self.averaged.load(self._batchnorm_inputs(epoch))
            self._loaded = True

    def save_latest(self) -> None:
        """Write the averaged model to latest.pt, unless it is not finite and an earlier one is worth more."""
        self.load_averaged()
        if self.averaged.is_finite() or not self.stop_on_nan:
            self._save("latest.pt")

    def _train(self, planned: Round) -> None:
        rates = self._rates(planned)
        stats = TrainStats()
        losses: list[Tensor] = []
        bad: list[tuple[int, int, str]] = []
        self.source.take_waited()  # what BatchNorm's batches took
        began = time.perf_counter()
        for clients in self._chunks():
            params = self._params[: len(clients)]
            chunk_losses, chunk_stats = self._train_chunk(planned, clients, params, rates)
            stats.add(chunk_stats)
            bad += self._not_finite(planned, clients, chunk_losses, params)
            if self.steps is not None:
                losses.append(chunk_losses)
            if planned.averaged:
                with span("average"):
                    self._mean.add(params)
        self._waiting.add(self.source.take_waited(), time.perf_counter() - began)
        for line in self.source.take_messages():
            self.logger.message(line)
        if self.steps is not None:
            self._write_steps(planned, rates, torch.cat(losses, dim=1))
        if bad:
            step, client, what = min(bad)
            self._stop_or_warn(planned, f"step {step}, client {client}", what)
        self.averaged.count_steps(planned.local_steps)
        self._step = planned.first_step + planned.local_steps
        if planned.averaged:
            self._average(planned)
        self._stats.add(stats)
        loss, correct = stats.mean(len(self.topk))
        accuracy = correct[0] if self.topk else None
        counters = planned.number, planned.epoch, planned.local_steps
        self.logger.round(RoundReport(*counters, rates[-1], loss, accuracy, stats.samples))

    def _train_chunk(
        self, planned: Round, clients: range, params: Tensor, rates: list[float]
    ) -> tuple[Tensor, TrainStats]:
        """The whole round of one chunk; returns its losses [local_steps, clients] on the CPU and its sums."""
        with span("plan"):
            stack, plan = self._stack(clients, params), self._plan(planned, clients, rates)
        if self.module_seed is not None:
            mixed = (self.module_seed * 1_000_003 + planned.first_step) * 1_000_003 + clients.start
            torch.manual_seed(mixed % 2**63)
        result = self.executor.run_round(stack, plan)
        if self.momentum is not None:
            self.momentum.store(clients)
        losses = result.losses.cpu()
        batch = plan.sample_ids.shape[-1]
        correct = [] if result.correct is None else result.correct.tolist()
        return losses, TrainStats(losses.double().sum().item() * batch, correct, losses.numel() * batch)

    def _stack(self, clients: range, params: Tensor) -> ClientStack:
        """What a chunk starts its round from, in the buffer `params`."""
        params.copy_(self.averaged.row.expand_as(params))
        return ClientStack(params, None if self.momentum is None else self.momentum.fetch(clients))

    def _chunks(self, begin: int = 0) -> Iterator[range]:
        """The clients from `begin` on, as many at a time as are resident."""
        for first in range(begin, self.clients, self.chunk):
            yield range(first, min(first + self.chunk, self.clients))

    def _rates(self, planned: Round) -> list[float]:
        return [self.progress.learning_rate(planned.first_step + step) for step in range(planned.local_steps)]

    def _plan(self, planned: Round, clients: range, rates: list[float]) -> RoundPlan:
        row = self.averaged.row
        sample_ids = self.streams.sample_ids(planned.first_step, planned.local_steps, clients)
        return RoundPlan(
            client_ids=torch.arange(clients.start, clients.stop, device=row.device),
            first_step=planned.first_step,
            learning_rates=torch.tensor(rates, dtype=row.dtype, device=row.device)[:, None].expand(-1, len(clients)),
            sample_ids=sample_ids.to(self.source.index_device),
            first_client=clients.start,
            following=lambda: self._following(planned, clients.stop, rates),
        )

    def _following(self, planned: Round, begin: int, rates: list[float]) -> Iterator[RoundPlan]:
        """The plans of the round's other chunks and of the rounds after it."""
        later = self._rounds.later()
        for clients in self._chunks(begin):
            yield self._plan(planned, clients, rates)
        for upcoming in later:
            for clients in self._chunks():
                yield self._plan(upcoming, clients, self._rates(upcoming))

    def _not_finite(
        self, planned: Round, clients: range, losses: Tensor, params: Tensor
    ) -> Iterator[tuple[int, int, str]]:
        """(step, client, what) of the first loss of a chunk, and of its first client's parameters, not finite."""
        if not math.isfinite(losses.double().sum().item()):
            for step, client in (~losses.isfinite()).nonzero()[:1].tolist():
                value = losses[step, client].item()
                yield planned.first_step + step, clients.start + client, f"the loss is {value}"
        if not math.isfinite(params.sum(dim=1).sum().item()):
            for client in (~params.isfinite().all(dim=1)).nonzero()[:1].flatten().tolist():
                last = planned.first_step + planned.local_steps - 1
                yield last, clients.start + client, "the parameters are no longer finite"

    def _stop_or_warn(self, planned: Round, who: str, what: str) -> None:
        where = f"round {planned.number}, {who}: {what}"
        if self.stop_on_nan:
            raise NonFiniteLoss(where)
        if not self._warned:
            self.logger.message(f"{where}; going on (--on-nan continue), said once")
            self._warned = True

    def _average(self, planned: Round) -> None:
        with span("average"):
            mean = self._mean.take()
        with span("server"):
            self.averaged.replace(mean)
        self.comm_round = planned.comm_round
        self._loaded = False

    def _batchnorm_inputs(self, epoch: int) -> Iterator[Tensor]:
        for batch in self.source.feed(
            Wanted(ids.unsqueeze(0).to(self.source.index_device), self._number(client), step)
            for ids, client, step in self.streams.epoch_batches(epoch, self.bn_batches)
        ):
            interrupts.poll()
            yield batch.inputs[0]

    def _number(self, client: int) -> Tensor:
        return torch.tensor([client], device=self.source.index_device)

    def _report(self, planned: Round) -> None:
        """Evaluate the averaged model, save it and log the line."""
        with span("evaluate"):
            self.load_averaged()
            result = self.evaluate()
        if not (math.isfinite(result.loss) and self.averaged.is_finite()):
            self._stop_or_warn(planned, "averaged model", f"the test loss is {result.loss}")
        loss, accuracies = self._stats.mean(len(self.topk))
        self._stats = TrainStats()
        row: dict[str, Any] = {"epoch": planned.epoch, "comm_round": planned.comm_round}
        if self.topk:
            self.best_acc = max(self.best_acc, result.accuracies[0])
        row |= self._accuracies("train", accuracies) | {"train_loss": loss}
        row |= self._accuracies("val", result.accuracies) | {"val_loss": result.loss}
        row |= {"best_acc": self.best_acc if self.topk else None}
        row |= {"iter": planned.iteration, "lr": planned.learning_rate}
        self.save_latest()
        if planned.save_as is not None:
            self._save(planned.save_as)
        self.history.append(row)
        self.logger.evaluation(row)
        line = self._waiting.take()
        if line is not None:
            self.logger.message(line)

    def _accuracies(self, half: str, values: list[float] | tuple[float, ...]) -> dict[str, float | None]:
        if not self.topk:
            return {f"{half}_acc1": None}
        return {f"{half}_acc{k}": value for k, value in zip(self.topk, values, strict=True)}

    def _save(self, name: str) -> None:
        self.load_averaged()
        path = self.directory / name
        save_model(path, self.averaged.module.state_dict())
        self.logger.checkpoint(path)

    def _write_steps(self, planned: Round, rates: list[float], losses: Tensor) -> None:
        assert self.steps is not None
        self.steps.write(
            (planned.first_step + step, client, rates[step], loss)
            for step, row in enumerate(losses.tolist())
            for client, loss in enumerate(row)
        )
