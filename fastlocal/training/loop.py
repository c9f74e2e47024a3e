"""Communication rounds: plan, local steps, average, evaluate, save, log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..aggregation.global_model import GlobalModel
from ..checkpoint.saver import Saver
from ..checkpoint.state_file import State
from ..common import interrupts
from ..common.torch_threads import torch_threads
from ..data.sources.base import Source
from ..distributed.world import World
from ..executors.base import LocalProblem
from ..executors.interface import Executor
from ..executors.jobs import ChunkJob
from ..params.client_stack import ClientRows, ClientStack, ClientStore, repeated, take
from ..schedule.cursor import PartialRound, TrainingCursor
from ..schedule.rounds import Progress, RoundSchedule
from ..telemetry.base import Logger
from ..telemetry.jsonl import StepLog
from ..telemetry.trace import span
from .algorithm_rounds import RoundWeights
from .chunk_results import PendingResults
from .client_reports import ClientReports
from .evaluator import Evaluator
from .planner import Planner
from .points import LoopSteps, Point
from .round_sync import step_rows, sync_round
from .server import Server
from .snapshot import take_snapshot
from .timers import Timers


@dataclass
class Loop:
    """The training loop of one process; training.driver drives it.

    Attributes:
        world: The processes of the run.
        planner: Plans the rounds of this process's clients.
        problem: The local step that the executor takes.
        client_store: Momenta and buffers of the clients.
        server: Turns the clients of a round into the next global model.
        steps: Log of every local step, or None.
        log_steps: Whether some rank writes that log.
        saver: Writes the snapshots.
        config: The resolved RunConfig as nested plain dictionaries.
        grace: Seconds that a chunk may still take after a signal.
        by_client: Evaluates clients, or None.
        one_thread: Whether rounds are too small for intra-op threads; evaluations have them in any case.
        cursor: Progress of the run.
        chunk_done: Whether no chunk is on its way; a driver clears it before it takes the local steps of a job.
    """

    world: World
    progress: Progress
    planner: Planner
    source: Source
    problem: LocalProblem
    executor: Executor
    global_model: GlobalModel
    server: Server
    client_store: ClientStore
    evaluator: Evaluator
    logger: Logger
    steps: StepLog | None
    log_steps: bool
    saver: Saver
    config: dict[str, Any]
    grace: float
    by_client: ClientReports | None = None
    one_thread: bool = False
    cursor: TrainingCursor = field(default_factory=TrainingCursor)

    def __post_init__(self) -> None:
        row = self.global_model.flat_params
        self._params = torch.empty(self.planner.chunk, row.numel(), dtype=row.dtype, device=row.device)
        start = self.problem.start_moments(row)
        start = {name: value for name, value in start.items() if name not in self.client_store.names}
        self._fresh = repeated(start, self.planner.chunk)
        self._timers = Timers()
        self._threads = torch.get_num_threads()
        self.chunk_done = True
        self._before_leftover: State | None = None

    @property
    def comm_round(self) -> int:
        """Number of averages so far."""
        return self.cursor.comm_round

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.evaluator.directory

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        return self.evaluator.history

    def run(self, eval_on_start: bool) -> LoopSteps:
        """Train the remaining rounds; a driver takes the local steps.

        Several loops can be driven in turns. Before a round's local steps the generator yields Point.ROUND, then a
        ChunkJob for every chunk and takes its RoundResult, and Point.TRAINED after the last one. It talks to other
        processes only between Point.TRAINED and the next Point.ROUND, and before the first one.
        """
        cursor = self.cursor
        if cursor.stage == "start":
            if eval_on_start:
                self._report(self.progress.start())
            cursor.stage = "train"
        for schedule in self.planner.rounds(cursor):
            if not schedule.averaged:
                # steps left over are not averaged; a run extended later trains them as part of a whole round
                self._before_leftover = self.snapshot()
            yield from self._round(schedule)
            if schedule.evaluate and self.evaluator.reaches_target():
                return self.save()
            if schedule.averaged:
                self.saver.after_round(schedule.comm_round, schedule.evaluate, self.snapshot)
        last = self._before_leftover or self.snapshot()
        last.metadata["ended"] = self.progress.total_steps
        with interrupts.grace_period(self.grace):
            self.saver.finish(last)

    def save(self) -> None:
        """Save the state before a round, from which another process or a later time goes on."""
        with interrupts.grace_period(self.grace):
            self.saver.finish(self.snapshot())

    def stop(self) -> None:
        """Save after a KeyboardInterrupt, if every process has finished its chunk, within `grace` seconds."""
        with interrupts.grace_period(self.grace, start_now=True):
            self.world.ask_to_stop()
            ranks = self.world.all_gather_object(
                [self.chunk_done, self.saver.requested_save()], "the save before the end"
            )
            if all(chunk_done for chunk_done, _ in ranks):
                # a snapshot for each save, so that all ranks take as many
                newest = max(save for _, save in ranks)
                self.saver.catch_up(newest, lambda: self._before_leftover or self.snapshot())
                self.saver.finish(self._before_leftover or self.snapshot())

    def snapshot(self) -> State:
        """Copy the state from which a later process resumes."""
        return take_snapshot(self)

    def _round(self, schedule: RoundSchedule) -> LoopSteps:
        cursor = self.cursor
        cursor.round_end = schedule.first_step + schedule.local_steps
        if cursor.stage == "train":
            if not cursor.so_far.done:
                for name in schedule.phase_files[0]:
                    self.evaluator.save(name, cursor.steps_done)
            yield from self._train(schedule)
        if cursor.stage == "report":
            if schedule.evaluate:
                self._report(schedule)
            cursor.stage = "files"
        for name in schedule.phase_files[1]:
            self.evaluator.save(name, cursor.steps_done)
        cursor.stage, cursor.first_step, cursor.rounds_before = "train", cursor.round_end, cursor.comm_round

    def _train(self, schedule: RoundSchedule) -> LoopSteps:
        cursor, so_far = self.cursor, self.cursor.so_far
        yield Point.ROUND
        rates = self.planner.rates(schedule)
        if self.by_client is not None:
            self.by_client.before_round(schedule, cursor)
        self.source.pop_wait_seconds()  # drop the waits of BatchNorm's re-estimation
        began = time.perf_counter()
        cohort = self.planner.cohort(schedule)
        weights = self.server.algorithm.begin(self.planner, schedule)
        if not so_far.done:
            self.server.prepare(self.client_store)
        chunks = self.planner.chunks(schedule, so_far.done)
        for place, rows in enumerate(chunks):
            yield from self._train_chunk(schedule, rows, chunks[place + 1 :], rates, weights)
            if schedule.averaged and place + 1 < len(chunks):
                self.saver.after_chunk(self.snapshot)
        yield Point.TRAINED
        ended = time.perf_counter()
        self._timers.add_steps(ended - began, self.source.pop_wait_seconds())
        for line in self.source.pop_messages():
            self.logger.message(line)
        what = f"the end of round {schedule.number}"
        round_sync = sync_round(self.world, what, so_far, self.saver.requested_save(), losses=self.log_steps)
        self._timers.add_rank_wait(time.perf_counter() - ended)
        if schedule.averaged:
            self.saver.catch_up(round_sync.save, self.snapshot)  # before this round's steps are logged and counted
        if self.steps is not None:
            counted = self.planner.streams.steps(schedule.first_step)
            self.steps.write(step_rows(schedule, rates, cohort.ids, counted, round_sync.losses))
        if round_sync.bad:
            step, client, what = min(round_sync.bad)
            self.evaluator.stop_or_warn(schedule, f"step {step}, client {client}", what)
        steps = self.planner.most_steps(schedule)
        self.global_model.count_steps(steps)
        if schedule.averaged:
            if len(cohort):
                rows = self.planner.rows(schedule)
                self.server.average(
                    schedule.number,
                    self.cursor.comm_round,
                    self.client_store,
                    self.planner.state_rows(schedule, rows),
                    None if weights.clients is None else weights.clients[rows.start : rows.stop],
                    total=len(cohort) if weights.clients is None else 1.0,
                    weight=weights.total,
                    client_rate=rates[0],
                    timers=self._timers,
                )
            else:
                self.logger.message(f"round {schedule.number}: no client took part; the model stays as it was")
            self.cursor.comm_round = schedule.comm_round
        cursor.stats.add(round_sync.stats)
        cursor.samples += round_sync.stats.samples
        cursor.own_results = round_sync.own_results
        cursor.steps_done, cursor.stage, cursor.so_far = cursor.round_end, "report", PartialRound()
        counts = len(cohort), steps
        self.logger.round(self.evaluator.round_report(schedule, cursor, round_sync.stats, rates[-1], *counts))

    def _train_chunk(
        self,
        schedule: RoundSchedule,
        rows: ClientRows,
        rest: list[ClientRows],
        rates: list[float],
        weights: RoundWeights,
    ) -> LoopSteps:
        """Train one chunk of clients for the round.

        Args:
            schedule: The round.
            rows: The rows of the chunk.
            rest: The chunks of this round after this one.
            rates: The learning rate of each local step.
            weights: Weights of the clients of the round.
        """
        so_far, params = self.cursor.so_far, self._params[: len(rows)]
        state_rows = self.planner.state_rows(schedule, rows)
        with span("plan"):
            start, algorithm = self.global_model.flat_params, self.server.algorithm
            stack = algorithm.correct(self._stack(state_rows, params), rows, start, self.planner.chunk)
            plan = self.planner.plan(schedule, rows, rates, rest)
            self.client_store.read_ahead(lambda: self.planner.next_state_rows(schedule, rest))
        self.evaluator.seed_module(schedule.first_step, plan.first_row)
        result = yield ChunkJob(self.executor, self.problem, stack, plan)
        assert result is not None, "the driver answers a job by its result"
        if schedule.averaged:
            algorithm.finish(params, start)
        self.client_store.store(state_rows)
        if self.by_client is not None:
            with span("evaluate"):
                so_far.own_results += self.by_client.after_chunk(schedule, stack, plan)
        # while a GPU still steps, what follows is queued and the next chunk is planned
        pending = PendingResults(result, params)
        if schedule.averaged:
            with span("average"):
                part = None if weights.changes is None else take(weights.changes, rows)
                fragment = self.server.fragments.of(self.cursor.comm_round)
                fragment.aggregator.accumulate(params[:, fragment.columns], last=not rest, weights=part)
        with span("plan"):
            self.planner.plan_ahead(schedule, rest, rates)
        results = pending.wait(plan, self.problem)
        for note in result.notes:
            self.logger.message(note)
        so_far.stats.add(results.stats)
        so_far.bad += results.bad
        if self.log_steps:
            so_far.losses.append(results.losses)
        so_far.done.append(rows if isinstance(rows, range) else tuple(rows.tolist()))
        self.chunk_done = True

    def _stack(self, state_rows: ClientRows, params: Tensor) -> ClientStack:
        """Return the state in which a chunk starts its round; its parameters are written to `params`."""
        params.copy_(self.global_model.flat_params.expand_as(params))
        rows = self.client_store.fetch(state_rows)
        fresh = {name: values[: len(params)].zero_() for name, values in self._fresh.items()}
        return ClientStack.of(params, {**rows, **fresh})

    def _report(self, schedule: RoundSchedule) -> None:
        """Evaluate and log the global model, and advance the cursor past the evaluation."""
        with span("evaluate"), torch_threads(self._threads):
            (self.by_client or self.evaluator).report(schedule, self.cursor)
        self.cursor.stage = "train" if self.cursor.stage == "start" else "files"
        self.logger.evaluation(self.history[-1])
        for line in self._timers.pop_messages(self.world):
            self.logger.message(line)
