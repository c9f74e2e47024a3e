"""Communication rounds: plan, local steps, average, evaluate, save, log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..aggregation.averager import Aggregator
from ..aggregation.buffer_mean import BufferMean
from ..aggregation.global_model import GlobalModel
from ..checkpoint.saver import Saver
from ..checkpoint.state_file import State
from ..common import interrupts
from ..data.sources.base import Source
from ..distributed.world import World
from ..executors.base import Executor, LocalProblem
from ..executors.empty_batches import clear_empty
from ..module_checks.plain_steps import FAILURES
from ..params.client_stack import MOMENTUM, ClientStack, ClientStore
from ..params.nonfinite import find_nonfinite
from ..schedule.cursor import PartialRound, TrainingCursor, TrainStats
from ..schedule.rounds import Progress, RoundSchedule
from ..telemetry.base import Logger, RoundReport
from ..telemetry.jsonl import StepLog
from ..telemetry.trace import span
from .evaluator import Reports
from .failing_batch import blame
from .planner import Planner
from .round_sync import RoundSync, sync_round
from .snapshot import take_snapshot
from .timers import Waiting


@dataclass
class Loop:
    """A run whose parts are built. `run` trains it to its end.

    Attributes:
        world: The processes of the run.
        planner: Of the rounds, with the clients of this process.
        problem: The local step that the executor takes.
        kept: Momenta and buffers that stay with each client from round to round.
        steps: Log of every local step, or None.
        log_steps: Whether some rank writes that log.
        mean_state: Of the buffers that a forward pass changes; None if it changes none.
        saver: Writes the snapshots.
        config: The resolved RunConfig as nested plain dictionaries.
        grace: Seconds that a chunk may still take after a signal.
        cursor: How far the run is.
    """

    world: World
    progress: Progress
    planner: Planner
    source: Source
    problem: LocalProblem
    executor: Executor
    averaged: GlobalModel
    averager: Aggregator
    kept: ClientStore
    reports: Reports
    logger: Logger
    steps: StepLog | None
    log_steps: bool
    mean_state: BufferMean | None
    saver: Saver
    config: dict[str, Any]
    grace: float
    cursor: TrainingCursor = field(default_factory=TrainingCursor)

    def __post_init__(self) -> None:
        row = self.averaged.flat_params
        self._params = torch.empty(self.planner.chunk, row.numel(), dtype=row.dtype, device=row.device)
        self._waiting = Waiting()
        self._whole = True

    @property
    def comm_round(self) -> int:
        """Averages so far."""
        return self.cursor.comm_round

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.reports.directory

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return self.reports.history

    def run(self, eval_on_start: bool) -> None:
        """Every round of the plan that is still to come.

        On KeyboardInterrupt what was reached is saved, within `grace` seconds of the signal.
        """
        at, before_leftover = self.cursor, None
        try:
            if at.stage == "start":
                if eval_on_start:
                    self._report(self.progress.start())
                at.stage = "train"
            for planned in self.planner.rounds(at):
                if not planned.averaged:
                    before_leftover = self.snapshot()  # a longer run would not have stopped to train these alone
                self._round(planned)
                if planned.averaged:
                    self.saver.after_round(planned.comm_round, planned.evaluate, self.snapshot)
            last = before_leftover or self.snapshot()
            last.metadata["ended"] = self.progress.total_steps
            with interrupts.grace_period(self.grace):
                self.saver.finish(last)
        except KeyboardInterrupt:
            with interrupts.grace_period(self.grace, start_now=True):
                self.world.ask_to_stop()
                told = self.world.all_gather_object(
                    [self._whole, self.saver.requested_save()], "the save before the end"
                )
                if all(whole for whole, _ in told):
                    last = before_leftover or self.snapshot()
                    self.saver.catch_up(max(save for _, save in told), lambda: last)
                    self.saver.finish(last)
            raise

    def snapshot(self) -> State:
        """Copy all that a later process needs to go on from here."""
        return take_snapshot(self)

    def _round(self, planned: RoundSchedule) -> None:
        at = self.cursor
        at.round_end = planned.first_step + planned.local_steps
        if at.stage == "train":
            if not at.so_far.done:
                for name in planned.phase_files[0]:
                    self.reports.save(name, at.steps_done)
            self._train(planned)
        if at.stage == "report":
            if planned.evaluate:
                self._report(planned)
            at.stage = "files"
        for name in planned.phase_files[1]:
            self.reports.save(name, at.steps_done)
        at.stage, at.first_step, at.rounds_before = "train", at.round_end, at.comm_round

    def _train(self, planned: RoundSchedule) -> None:
        at, so_far = self.cursor, self.cursor.so_far
        rates = self.planner.rates(planned)
        self.source.pop_wait_seconds()  # what BatchNorm's batches took
        began = time.perf_counter()
        chunks = self.planner.chunks(so_far.done)
        for place, clients in enumerate(chunks):
            interrupts.check_signals()
            self.world.check_stop()
            self._train_chunk(planned, clients, chunks[place + 1 :], rates)
            if planned.averaged and place + 1 < len(chunks):
                self.saver.after_chunk(self.snapshot)
        ended = time.perf_counter()
        self._waiting.trained(ended - began, self.source.pop_wait_seconds())
        for line in self.source.pop_messages():
            self.logger.message(line)
        what = f"the end of round {planned.number}"
        met = sync_round(self.world, what, so_far, self.saver.requested_save(), losses=self.log_steps)
        self._waiting.met(time.perf_counter() - ended)
        if planned.averaged:
            self.saver.catch_up(met.save, self.snapshot)  # before this round's steps are logged and counted
        if self.steps is not None:
            self._write_steps(planned, rates, met)
        if met.bad:
            step, client, what = min(met.bad)
            self.reports.stop_or_warn(planned, f"step {step}, client {client}", what)
        self.averaged.count_steps(planned.local_steps)
        if planned.averaged:
            self._average(planned)
        at.stats.add(met.stats)
        at.steps_done, at.stage, at.so_far = at.round_end, "report", PartialRound()
        loss, correct = met.stats.mean(len(self.reports.topk))
        accuracy = correct[0] if self.reports.topk else None
        counters = planned.number, planned.epoch, planned.local_steps
        self.logger.round(RoundReport(*counters, rates[-1], loss, accuracy, met.stats.samples))

    def _train_chunk(self, planned: RoundSchedule, clients: range, rest: list[range], rates: list[float]) -> None:
        """The whole round of one chunk of clients; `rest` are those after it."""
        so_far, params = self.cursor.so_far, self._params[: len(clients)]
        self._whole = False
        with interrupts.grace_period(self.grace):
            with span("plan"):
                stack = self._stack(clients, params)
                plan = self.planner.plan(planned, clients, rates, rest)
            self.reports.seed_module(planned.first_step, clients.start)
            try:
                result = self.executor.run_round(stack, plan)
            except FAILURES as error:
                told = blame(self.problem, plan, error)
                if told is None:
                    raise
                raise told from error
            self.kept.store(clients)
            losses = result.losses.cpu()
        for note in result.notes:
            self.logger.message(note)
        batch = plan.sample_ids.shape[-1]
        empty = clear_empty(losses, plan, self.problem) * batch
        counts = [] if result.correct is None else result.correct.tolist()
        correct, ignored = counts[: len(self.problem.topk)], int(sum(counts[len(self.problem.topk) :]))
        loss = losses.double().sum().item() * batch
        so_far.stats.add(TrainStats(loss, correct, losses.numel() * batch, ignored, empty))
        so_far.bad += find_nonfinite(losses, params, planned.first_step, clients.start)
        if self.log_steps:
            so_far.losses.append(losses)
        if planned.averaged:
            with span("average"):
                self.averager.accumulate(params, last=not rest)
        so_far.done.append((clients.start, clients.stop))
        self._whole = True

    def _average(self, planned: RoundSchedule) -> None:
        device = self.averaged.flat_params.device
        with self.world.averaging(f"the average of round {planned.number}"), span("average"):
            with self._waiting.averaging(device):
                self.averager.start(self.averaged.flat_params)
                mean = self.averager.finish()
            self.world.await_device(device)
        buffers: dict[str, Tensor] = {}
        if self.mean_state is not None:
            what = f"the average of the buffers of round {planned.number}"
            buffers = self.mean_state(self.kept, self.world.averaging(what))
            for name in self.averaged.shared:  # parameters are averaged whether they are trained or not
                self.kept.all[name].copy_(buffers[name].to(self.kept.all[name].device))
        with span("server"):
            self.averaged.replace(mean, buffers)
        self.cursor.comm_round = planned.comm_round

    def _stack(self, clients: range, params: Tensor) -> ClientStack:
        """What a chunk starts its round from, in the buffer `params`."""
        params.copy_(self.averaged.flat_params.expand_as(params))
        rows = self.kept.fetch(clients)
        return ClientStack(params, rows.pop(MOMENTUM, None), rows)

    def _report(self, planned: RoundSchedule) -> None:
        """Afterwards the run is past its evaluation."""
        with span("evaluate"):
            self.reports.report(planned, self.cursor)
        self.cursor.stage = "train" if self.cursor.stage == "start" else "files"
        self.logger.evaluation(self.history[-1])
        for line in self._waiting.take(self.world):
            self.logger.message(line)

    def _write_steps(self, planned: RoundSchedule, rates: list[float], met: RoundSync) -> None:
        assert self.steps is not None
        self.steps.write(
            (planned.first_step + step, client, rates[step], loss)
            for step in range(planned.local_steps)
            for client, loss in enumerate(losses[step] for losses in met.losses)
        )
