"""The round of a chunk that waits for its executor."""

from __future__ import annotations

from dataclasses import dataclass

from ..params.client_stack import ClientStack
from .base import LocalProblem
from .interface import Executor
from .round_plan import RoundPlan


@dataclass(frozen=True)
class ChunkJob:
    """The round of one chunk of a run.

    Attributes:
        executor: The executor of the run.
        problem: The local step of the run.
        stack: Rows of the clients, changed in place.
        plan: The round.
    """

    executor: Executor
    problem: LocalProblem
    stack: ClientStack
    plan: RoundPlan
