"""The interface of the executors, and the base class of those that a run can name."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..config.schema import MachineConfig, RunConfig
from ..params.client_stack import ClientStack
from .base import LocalProblem
from .round_plan import RoundPlan, RoundResult

if TYPE_CHECKING:
    from .jobs import ChunkJob


class Executor(Protocol):
    """Anything that takes local steps."""

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """Take all local steps of a plan on the rows of a stack, in place."""
        ...

    def run_jobs(self, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """Take the local steps of several runs of the same program, each the `replica` of another."""
        ...

    def replica(self, problem: LocalProblem) -> Executor:
        """Return an executor of another run that differs in hyperparameters and seeds; it shares what it can."""
        ...


Values = Mapping[str, Any]
"""Fields of MachineConfig by name."""


class ExecutorKind(abc.ABC):
    """Base class of the executors in executors/registry.py, with defaults for what they declare.

    Attributes:
        name: Value of --executor.
        in_place: Whether all resident clients step at once in the rows of the stack; else each worker copies one client
            to its own row.
        in_order: Whether the loss is called in a fixed order: client after client, step after step.
        flags: Fields of MachineConfig that only this executor supports.
        warm_up_steps: First steps of a shape that take longer than later ones.
    """

    name: ClassVar[str]
    in_place: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    flags: ClassVar[frozenset[str]] = frozenset()
    warm_up_steps: ClassVar[int] = 1

    @abc.abstractmethod
    def __init__(self, problem: LocalProblem) -> None:
        """Prepare the local steps of a problem."""

    @abc.abstractmethod
    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """See Executor.run_round."""

    def run_jobs(self, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """See Executor.run_jobs; one run after the other."""
        return [job.executor.run_round(job.stack, job.plan) for job in jobs]

    def replica(self, problem: LocalProblem) -> Executor:
        """See Executor.replica."""
        return type(self)(problem)

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> Executor:
        """Make an executor from the settings of a run."""
        return cls(problem)

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """Return why the executor cannot train the problem, or None; the text follows "--executor NAME: "."""
        return None

    @classmethod
    def workers(cls, machine: MachineConfig) -> int:
        """Return the number of clients that step at once if not in_place."""
        return 1

    @classmethod
    def prepare(cls, problem: LocalProblem) -> list[str]:
        """Compile the libraries of the steps, and return log lines about missing ones."""
        return []

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """Return the settings to time with --executor auto.

        Args:
            config: Resolved settings.
            requested: Settings of the user, which stay.
            problem: The local step.
        """
        return [{"executor": cls.name}]
