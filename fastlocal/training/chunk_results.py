"""Results of the local steps of a chunk, which the host reads once while the device goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..common.readback import Readback
from ..executors.base import LocalProblem
from ..executors.empty_batches import clear_empty
from ..executors.round_plan import RoundPlan, RoundResult
from ..params.nonfinite import find_nonfinite
from ..schedule.cursor import TrainStats


@dataclass(frozen=True)
class ChunkResults:
    """Results of a chunk, on the host.

    Attributes:
        losses: [local_steps, clients]; 0 after a client's last step.
        stats: Sums over the clients.
        bad: (step, client, text) of the first loss and the first parameters that are not finite.
    """

    losses: Tensor
    stats: TrainStats
    bad: list[tuple[int, int, str]]


class PendingResults:
    """Results of a chunk on their way to the host."""

    def __init__(self, result: RoundResult, params: Tensor) -> None:
        """Queue their sums and copies behind the local steps.

        Args:
            result: The result of the executor.
            params: [clients, n_params] after the steps; they stay as they are until `wait`.
        """
        self._params = params
        counts = [] if result.correct is None else [result.correct.sum(dim=0)]
        self._readback = Readback(result.losses, params.sum(dim=1).sum(), *counts)

    def wait(self, plan: RoundPlan, problem: LocalProblem) -> ChunkResults:
        """Return the results as soon as the steps are done.

        Args:
            plan: The steps.
            problem: The local step.
        """
        losses, param_sum, *counts = self._readback.wait()
        empty = clear_empty(losses, plan, problem)
        counted = (counts[0] / problem.places).tolist() if counts else []
        correct, ignored = counted[: len(problem.topk)], int(sum(counted[len(problem.topk) :]))
        loss, samples = plan.trained(losses)
        finite = math.isfinite(param_sum.item())
        bad = find_nonfinite(losses, None if finite else self._params, plan.start, plan.client_ids, plan.steps_of)
        return ChunkResults(losses, TrainStats(loss, correct, samples, ignored, empty), list(bad))
