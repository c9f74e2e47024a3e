"""The place of evaluations by client in the rounds of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..executors.round_plan import RoundPlan
from ..params.client_stack import ClientStack
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import RoundSchedule
from .client_evaluation import ClientEvaluator
from .client_results import ClientResult, rows_of, statistics_of
from .evaluator import Evaluator


@dataclass(frozen=True)
class ClientReports:
    """Evaluate clients after every few rounds.

    Attributes:
        clients: Evaluates models by client.
        every: Rounds between evaluations.
        evaluator: Evaluates the global model, and keeps its BatchNorms.
    """

    clients: ClientEvaluator
    every: int
    evaluator: Evaluator

    def is_due(self, schedule: RoundSchedule) -> bool:
        """Return True if an evaluation by client follows a round."""
        return schedule.evaluate and schedule.comm_round > 0 and schedule.comm_round % self.every == 0

    def before_round(self, schedule: RoundSchedule, cursor: TrainingCursor) -> None:
        """Re-estimate the statistics with which the own models of the round are evaluated."""
        if self.is_due(schedule) and self.evaluator.global_model.has_batchnorm:
            self.evaluator.load_global_model(cursor.steps_done)

    def after_chunk(self, schedule: RoundSchedule, stack: ClientStack, plan: RoundPlan) -> list[list[Any]]:
        """Return the results of the own models of a chunk as JSON values; empty in rounds without an evaluation."""
        if not self.is_due(schedule):
            return []
        self.evaluator.seed_module(schedule.first_step, self.evaluator.streams.population + 2 + plan.first_row)
        steps_done = schedule.first_step + schedule.local_steps
        return [list(one) for one in self.clients.evaluate_own(stack, plan.client_ids, steps_done)]

    def report(self, schedule: RoundSchedule, cursor: TrainingCursor) -> None:
        """Evaluate the global model on the test set, and if it is due by client; log both."""
        if not self.is_due(schedule):
            self.evaluator.report(schedule, cursor)
            return
        self.evaluator.load_global_model(cursor.steps_done)
        self.evaluator.seed_module(cursor.steps_done, self.evaluator.streams.population + 2)
        cohort = self.evaluator.streams.cohort(schedule.first_step).ids
        found = self.clients.evaluate_global(cohort, cursor.steps_done)
        for note in self.clients.pop_notes():
            self.evaluator.logger.message(note)
        own = [ClientResult(*one) for one in cursor.own_results]
        self.evaluator.report(schedule, cursor, statistics_of(found, "client") | statistics_of(own, "own"))
        self.evaluator.logger.clients(rows_of(schedule.comm_round, found, own))
        cursor.own_results = ()
