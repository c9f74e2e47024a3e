"""Drive training loops: one run, or several runs whose local steps are taken together."""

from __future__ import annotations

from collections.abc import Sequence

from ..common import interrupts
from ..common.errors import NonFiniteLoss
from ..common.torch_threads import torch_threads
from ..executors.jobs import ChunkJob
from ..executors.round_plan import RoundResult
from ..module_checks.plain_steps import FAILURES
from .failing_batch import find_failing_batch
from .loop import Loop
from .points import Point


class DrivenLoop:
    """A loop on its way.

    Attributes:
        loop: The loop.
        at: Where it waits: a point, a job, or None at its end.
        error: What ended it before its end: its own loss that is not finite, or None.
    """

    def __init__(self, loop: Loop, *, eval_on_start: bool) -> None:
        """Take the loop to its first round, past an evaluation at the start."""
        self.loop = loop
        self._steps = loop.run(eval_on_start)
        self.error: NonFiniteLoss | None = None
        self.at: ChunkJob | Point | None = None
        self.go_on()

    def go_on(self, result: RoundResult | None = None) -> None:
        """Take the loop to its next point or job.

        Args:
            result: The result of its job, if it waits at one.
        """
        try:
            self.at = self._steps.send(result)
        except StopIteration:
            self.at = None
        except NonFiniteLoss as error:
            self.at, self.error = None, error


def train_round(loops: Sequence[DrivenLoop]) -> None:
    """Train one round of loops that wait before a round; all processes drive the same loops in the same order."""
    with torch_threads(1 if all(driven.loop.one_thread for driven in loops) else None):
        take_local_steps(loops)
        for driven in loops:
            driven.go_on()


def take_local_steps(loops: Sequence[DrivenLoop]) -> None:
    """Take the loops past the local steps of a round.

    Raises:
        KeyboardInterrupt: A signal came; `Loop.stop` saves.
    """
    for driven in loops:
        driven.go_on()
    while True:
        waiting = [(driven, driven.at) for driven in loops if isinstance(driven.at, ChunkJob)]
        if not waiting:
            return
        world = waiting[0][0].loop.world
        interrupts.check_signals()
        world.check_stop()
        for driven, _ in waiting:
            driven.loop.chunk_done = False
        with interrupts.grace_period(waiting[0][0].loop.grace):
            results = _run([job for _, job in waiting])
            for (driven, _), result in zip(waiting, results, strict=True):
                driven.go_on(result)


def _run(jobs: Sequence[ChunkJob]) -> list[RoundResult]:
    try:
        return jobs[0].executor.run_jobs(jobs)
    except FAILURES as error:
        for job in jobs:
            usage_error = find_failing_batch(job.problem, job.plan, error)
            if usage_error is not None:
                raise usage_error from error
        raise


def train_loop(loop: Loop, *, eval_on_start: bool) -> None:
    """Train one run to its end; after a KeyboardInterrupt, `Loop.stop` saves."""
    driven = DrivenLoop(loop, eval_on_start=eval_on_start)
    while driven.at is not None:
        train_round([driven])
    if driven.error is not None:
        raise driven.error
