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
from .executors.base import Executor
from .finite import not_finite
from .planner import Planner
from .position import Position, RoundSoFar, Stage, TrainStats
from .progress import Progress, Round
from .saving import Saver
from .stack import ClientStack, MomentumStore
from .state_file import State
from .telemetry.base import Logger, RoundReport
from .telemetry.jsonl import StepLog
from .telemetry.trace import span
from .waiting import Waiting


@dataclass
class Loop:
    """A run whose parts are built. `run` trains it to its end.

    chunk: clients resident at once        momentum: None where there is none
    evaluate: the model on the test set        topk: the k of accuracies, empty where targets are not labels
    steps: where every local step is written, or None        stop_on_nan: whether a non-finite loss ends the run
    module_seed: seed of a module that draws random numbers itself, or None
    saver: keeps what `restore` goes on from        config: the resolved RunConfig as nested plain dictionaries
    grace: seconds that a chunk may still take after a signal
    at: how far the run is
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
    saver: Saver
    config: dict[str, Any]
    grace: float
    history: list[dict[str, Any]] = field(default_factory=list)
    at: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        row = self.averaged.row
        self._params = torch.empty(self.chunk, row.numel(), dtype=row.dtype, device=row.device)
        self._mean = LocalMean(row.numel(), self.clients, row.device)
        index_device = self.source.index_device
        self._planner = Planner(
            self.progress, self.streams, self.clients, self.chunk, row.dtype, row.device, index_device
        )
        self._waiting = Waiting()
        self._whole = True
        self._warned = False

    @property
    def comm_round(self) -> int:
        """Averages so far."""
        return self.at.comm_round

    def run(self, eval_on_start: bool) -> None:
        """Every round of the plan that is still to come.

        On KeyboardInterrupt what was reached is saved, within `grace` seconds of the signal.
        """
        at, before_leftover = self.at, None
        try:
            if at.stage == "start":
                if eval_on_start:
                    with span("evaluate"):
                        self._report(self.progress.start(), then="train")
                at.stage = "train"
            for planned in self._planner.rounds(at):
                if not planned.averaged:
                    before_leftover = self.snapshot()  # a longer run would not have stopped to train these alone
                self._round(planned)
                if planned.averaged:
                    self.saver.after_round(planned.comm_round, planned.evaluate, self.snapshot)
            last = before_leftover or self.snapshot()
            last.numbers["ended"] = self.progress.total_steps
            with interrupts.finishing(self.grace):
                self.saver.finish(last)
        except KeyboardInterrupt:
            if self._whole:
                with interrupts.finishing(self.grace):
                    self.saver.finish(before_leftover or self.snapshot())
            raise

    def snapshot(self) -> State:
        """A copy of all that `restore` needs."""
        device = self.averaged.row.device
        tensors = self.averaged.tensors() | {"torch random state": torch.get_rng_state()}
        if device.type == "cuda":
            tensors["cuda random state"] = torch.cuda.get_rng_state(device)
        if self.momentum is not None:
            tensors["momentum"] = self.momentum.all
        if self.at.so_far.clients:
            tensors["mean so far"] = self._mean.so_far()
            tensors |= {f"losses {index}": losses for index, losses in enumerate(self.at.so_far.losses)}
        logged = self.logger.state() | ({} if self.steps is None else self.steps.state())
        numbers = {
            "config": self.config,
            "position": self.at.numbers(),
            "averaged": self.averaged.numbers(),
            "clients": [0, self.clients],
            "logged": logged,
            "ended": None,
        }
        return State(numbers, {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()})

    def restore(self, state: State) -> None:
        """Go on from where `state` was copied; the loggers have been told."""
        numbers, tensors = state.numbers, state.tensors
        losses = [value.clone() for name, value in tensors.items() if name.startswith("losses ")]
        self.at = Position.of(numbers["position"], losses)
        self.averaged.restore(numbers["averaged"], tensors)
        if self.momentum is not None:
            self.momentum.all.copy_(tensors["momentum"])
        if self.at.so_far.clients:
            self._mean.so_far().copy_(tensors["mean so far"])
        torch.set_rng_state(tensors["torch random state"].clone())
        if "cuda random state" in tensors and self.averaged.row.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda random state"].clone(), self.averaged.row.device)

    def load_averaged(self) -> None:
        """Bring the plain module up to the averaged row, BatchNorm re-estimated, unless it is there already."""
        if not self.averaged.loaded:
            epoch = max(self.at.trained - 1, 0) // self.progress.steps_per_epoch
            self._seed_module(self.at.trained, self.clients)
            self.averaged.load(self._batchnorm_inputs(epoch))

    def save_latest(self) -> None:
        """Write the averaged model to latest.pt, unless it is not finite and an earlier one is worth more."""
        self.load_averaged()
        if self.averaged.is_finite() or not self.stop_on_nan:
            self._save("latest.pt")

    def _round(self, planned: Round) -> None:
        at = self.at
        at.round_end = planned.first_step + planned.local_steps
        if at.stage == "train":
            if not at.so_far.clients:
                for name in planned.phase_files[0]:
                    self._save(name)
            self._train(planned)
        if at.stage == "report":
            if planned.evaluate:
                with span("evaluate"):
                    self._report(planned, then="files")
            at.stage = "files"
        for name in planned.phase_files[1]:
            self._save(name)
        at.stage, at.first_step, at.rounds_before = "train", at.round_end, at.comm_round

    def _train(self, planned: Round) -> None:
        at, so_far = self.at, self.at.so_far
        rates = self._planner.rates(planned)
        self.source.take_waited()  # what BatchNorm's batches took
        began = time.perf_counter()
        for clients in self._planner.chunks(so_far.clients):
            interrupts.poll()
            params = self._params[: len(clients)]
            self._whole = False
            with interrupts.finishing(self.grace):
                losses, stats = self._train_chunk(planned, clients, params, rates)
            so_far.stats.add(stats)
            so_far.bad += not_finite(losses, params, planned.first_step, clients.start)
            if self.steps is not None:
                so_far.losses.append(losses)
            if planned.averaged:
                with span("average"):
                    self._mean.add(params)
            so_far.clients = clients.stop
            self._whole = True
            if planned.averaged and clients.stop < self.clients:
                self.saver.after_chunk(self.snapshot)
        self._waiting.add(self.source.take_waited(), time.perf_counter() - began)
        for line in self.source.take_messages():
            self.logger.message(line)
        if self.steps is not None:
            self._write_steps(planned, rates, torch.cat(so_far.losses, dim=1))
        if so_far.bad:
            step, client, what = min(so_far.bad)
            self._stop_or_warn(planned, f"step {step}, client {client}", what)
        self.averaged.count_steps(planned.local_steps)
        if planned.averaged:
            with span("average"):
                mean = self._mean.take()
            with span("server"):
                self.averaged.replace(mean)
            at.comm_round = planned.comm_round
        at.stats.add(so_far.stats)
        at.trained, at.stage, at.so_far = at.round_end, "report", RoundSoFar()
        loss, correct = so_far.stats.mean(len(self.topk))
        accuracy = correct[0] if self.topk else None
        counters = planned.number, planned.epoch, planned.local_steps
        self.logger.round(RoundReport(*counters, rates[-1], loss, accuracy, so_far.stats.samples))

    def _train_chunk(
        self, planned: Round, clients: range, params: Tensor, rates: list[float]
    ) -> tuple[Tensor, TrainStats]:
        """The whole round of one chunk; returns its losses [local_steps, clients] on the CPU and its sums."""
        with span("plan"):
            stack, plan = self._stack(clients, params), self._planner.plan(planned, clients, rates)
        self._seed_module(planned.first_step, clients.start)
        result = self.executor.run_round(stack, plan)
        for note in result.notes:
            self.logger.message(note)
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

    def _seed_module(self, step: int, what: int) -> None:
        """Make what the module draws itself depend on nothing that an interruption changes."""
        if self.module_seed is not None:
            mixed = (self.module_seed * 1_000_003 + step) * 1_000_003 + what
            torch.manual_seed(mixed % 2**63)

    def _stop_or_warn(self, planned: Round, who: str, what: str) -> None:
        where = f"round {planned.number}, {who}: {what}"
        if self.stop_on_nan:
            raise NonFiniteLoss(where)
        if not self._warned:
            self.logger.message(f"{where}; going on (--on-nan continue), said once")
            self._warned = True

    def _batchnorm_inputs(self, epoch: int) -> Iterator[Tensor]:
        for batch in self.source.feed(
            Wanted(ids.unsqueeze(0).to(self.source.index_device), self._number(client), step)
            for ids, client, step in self.streams.epoch_batches(epoch, self.bn_batches)
        ):
            interrupts.poll()
            yield batch.inputs[0]

    def _number(self, client: int) -> Tensor:
        return torch.tensor([client], device=self.source.index_device)

    def _report(self, planned: Round, then: Stage) -> None:
        """Evaluate the averaged model, save it and log the line; afterwards the run is at stage `then`."""
        at = self.at
        self.load_averaged()
        self._seed_module(at.trained, self.clients + 1)
        result = self.evaluate()
        if not (math.isfinite(result.loss) and self.averaged.is_finite()):
            self._stop_or_warn(planned, "averaged model", f"the test loss is {result.loss}")
        loss, accuracies = at.stats.mean(len(self.topk))
        at.stats = TrainStats()
        row: dict[str, Any] = {"epoch": planned.epoch, "comm_round": planned.comm_round}
        if self.topk:
            at.best_acc = max(at.best_acc, result.accuracies[0])
        row |= self._accuracies("train", accuracies) | {"train_loss": loss}
        row |= self._accuracies("val", result.accuracies) | {"val_loss": result.loss}
        row |= {"best_acc": at.best_acc if self.topk else None}
        row |= {"iter": planned.iteration, "lr": planned.learning_rate}
        self.save_latest()
        if planned.save_as is not None:
            self._save(planned.save_as)
        self.history.append(row)
        at.stage = then
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
