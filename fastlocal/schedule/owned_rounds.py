"""Schedule of runs whose clients own their samples: time is counted in rounds of H local steps.

Where clients take different numbers of steps, H is the greatest of them.
"""

from __future__ import annotations

from ..config.schema import RunConfig
from .phases import Phase
from .quadratic_rounds import QuadraticRounds
from .rate_schedules import rate_factor
from .rounds import Progress


class OwnedRounds(Progress):
    """--rounds rounds of H local steps, each at the rate --client-lr times the factor of --lr-schedule."""

    def __init__(self, config: RunConfig, local_steps: int) -> None:
        schedule = config.schedule
        assert schedule.rounds is not None and config.sgd.client_lr is not None, "validation.py requires both"
        super().__init__(config.with_values(steps_per_epoch=local_steps, lr_schedule="constant"))
        self.phases = [Phase(0, 0, 0, local_steps, schedule.eval_freq1, schedule.save_freq1, decays=0)]
        self.total_steps = schedule.rounds * local_steps
        self._client_lr = config.sgd.client_lr
        self._factor = rate_factor(schedule.lr_schedule, schedule.rounds)

    def _rate(self, step: int, phase: Phase) -> float:
        return self._client_lr * self._factor(step // phase.local_steps + 1)

    def _file(self, epoch: int, comm_round: int, phase_round: int) -> str:
        return f"round={comm_round}.pt"


def make_progress(config: RunConfig, local_steps: int | None = None) -> Progress:
    """Return the schedule of a resolved run.

    Args:
        config: The settings.
        local_steps: Steps of a round if clients own their samples; None: --step1.
    """
    if config.owned:
        return OwnedRounds(config, local_steps or config.schedule.step1)
    return QuadraticRounds(config) if config.schedule.sync == "qsr" else Progress(config)
