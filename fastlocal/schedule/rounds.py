"""Steps, rates, evaluations and checkpoints of each communication round, by pure arithmetic."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..config.schema import RunConfig
from .learning_rate import warm_up
from .phases import Phase, phases
from .rate_schedules import rate_factor


@dataclass(frozen=True)
class RoundSchedule:
    """One communication round and the evaluation and files after it.

    Attributes:
        first_step: First global local step of the round.
        local_steps: Number of local steps.
        averaged: False for the steps left over at the end of the run.
        comm_round: Averages after the round.
        phase_round: Rounds of the phase after the round.
        epoch: Epoch counter after the round, as metrics show it.
        iteration: Iteration counter after the round, as metrics show it.
        learning_rate: Rate after the round, as metrics show it.
        evaluate: Whether the model is evaluated and written to latest.pt.
        save_as: File name of the named checkpoint, or None.
        phase_files: Checkpoints of the averaged model at epochs that end within the round, and at its end.
    """

    first_step: int
    local_steps: int
    averaged: bool
    comm_round: int
    phase_round: int
    epoch: int
    iteration: int
    learning_rate: float
    evaluate: bool
    save_as: str | None
    phase_files: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def number(self) -> int:
        """Place in the run, counted from 1; the steps left over count as a round."""
        return self.comm_round + (not self.averaged)


class Progress:
    """Schedule of a whole run; steps_per_epoch of `config` must be resolved."""

    def __init__(self, config: RunConfig) -> None:
        schedule = config.schedule
        if schedule.sync == "constant":
            schedule = dataclasses.replace(schedule, step2=schedule.step1, step3=schedule.step1)
        assert schedule.steps_per_epoch is not None, "resolved before the plan is made"
        self.schedule = schedule
        self.gamma = config.sgd.gamma
        self.steps_per_epoch = schedule.steps_per_epoch
        self.by_epochs = schedule.schedule == "epochs"
        self.resume = config.model.resume if config.model.resume_pth or not self.by_epochs else 0
        first_epoch = self.resume + 1 if self.by_epochs else 1
        self.phases = phases(schedule, self.steps_per_epoch, first_epoch)
        self.post_local_steps = max(0, schedule.post_local_from - first_epoch + 1) * self.steps_per_epoch
        self.warm_up = warm_up(
            config.sgd,
            clients=config.clients,
            total_batch_size=config.client.total_batch_size,
            steps_per_epoch=self.steps_per_epoch,
        )
        self._decay_factor = None
        self.total_steps = schedule.epochs * self.steps_per_epoch
        if schedule.rounds is not None:
            self.total_steps = self._end_of_round(schedule.rounds)
        if schedule.lr_schedule != "constant":
            decaying = max(1, self.total_steps - self.warm_up.steps)
            self._decay_factor = rate_factor(schedule.lr_schedule, decaying, unit="local step")

    def learning_rate(self, step: int) -> float:
        """Return the rate of global local step `step`."""
        return self._rate(step, self._phase_at(step))

    @property
    def label(self) -> str:
        """H in the names of files."""
        return f"H={self.schedule.step1}-{self.schedule.step2}-{self.schedule.step3}"

    @property
    def leftover(self) -> int:
        """Local steps at the end of the run that are not averaged."""
        last = self._phase_at(max(self.total_steps - 1, 0))
        return (self.total_steps - last.origin) % last.local_steps

    def start(self) -> RoundSchedule:
        """Return the counters before the first round, for --eval-on-start."""
        first = self.phases[0]
        epoch = self.resume
        save = epoch % first.save_freq == 0 if self.by_epochs else True
        name = self._file(epoch, 0, 0) if save else None
        return RoundSchedule(0, 0, True, 0, 0, epoch, 0, self._rate(0, first), True, name)

    def rounds(self, step: int = 0, comm_round: int = 0) -> Iterator[RoundSchedule]:
        """Yield every round of the run in order; the last one may be left over without averaging.

        Args:
            step: Local steps already done, at the end of a round.
            comm_round: Averages already done.
        """
        while step < self.total_steps:
            end = self._next_average(step)
            averaged = end <= self.total_steps
            end = min(end, self.total_steps)
            comm_round += averaged
            yield self._round(step, end, comm_round, averaged)
            step = end

    def count(self) -> int:
        """Return the number of rounds that `rounds` yields."""
        last = self.phases[0]
        for phase in self.phases:
            if phase.first_step <= self.total_steps:
                last = phase
        offset = (last.first_step - last.origin) // last.local_steps
        averaged = last.first_round + (self.total_steps - last.origin) // last.local_steps - offset
        leftover = self.total_steps > 0 and self._next_average(self.total_steps - 1) > self.total_steps
        return averaged + leftover

    def _phase_at(self, step: int) -> Phase:
        return self.phases[bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1]

    def _rate(self, step: int, phase: Phase) -> float:
        if self._decay_factor is None:
            return self.warm_up.rate(step) * self.gamma**phase.decays
        after = step - self.warm_up.steps
        return self.warm_up.rate(step) if after < 0 else self.warm_up.peak * self._decay_factor(after + 1)

    def _next_average(self, step: int) -> int:
        """Return the end of the round that holds `step`, even beyond the end of the run."""
        for index, phase in enumerate(self.phases):
            following = self.phases[index + 1].first_step if index + 1 < len(self.phases) else None
            if following is not None and following <= step:
                continue
            begin = max(step, phase.first_step)
            end = begin + phase.local_steps - (begin - phase.origin) % phase.local_steps
            if following is None or end <= following:
                return end
        raise AssertionError("the last phase has no end")

    def _end_of_round(self, comm_round: int) -> int:
        """Return the local steps done at the end of round `comm_round`, counted from 1."""
        phase = [phase for phase in self.phases if phase.first_round < comm_round][-1]
        done = (phase.first_step - phase.origin) // phase.local_steps + comm_round - phase.first_round
        return phase.origin + done * phase.local_steps

    def _round(self, step: int, end: int, comm_round: int, averaged: bool) -> RoundSchedule:
        # by rounds a decay counts before the metrics line, by epochs after it
        phase = self._phase_at(end - 1 if self.by_epochs else end)
        phase_round = self._phase_round(comm_round, phase)
        epoch = self.resume + ((end - 1) // self.steps_per_epoch + 1 if self.by_epochs else end // self.steps_per_epoch)
        evaluate = averaged and phase_round % phase.eval_freq == 0
        save = evaluate and (epoch if self.by_epochs else phase_round) % phase.save_freq == 0
        return RoundSchedule(
            first_step=step,
            local_steps=end - step,
            averaged=averaged,
            comm_round=comm_round,
            phase_round=phase_round,
            epoch=epoch,
            iteration=self._iteration(end, comm_round, phase),
            learning_rate=self._rate(end, phase),
            evaluate=evaluate,
            save_as=self._file(epoch, comm_round, phase_round) if save else None,
            phase_files=self._phase_files(step, end),
        )

    def _phase_round(self, comm_round: int, phase: Phase) -> int:
        return comm_round if self.by_epochs else comm_round - phase.first_round

    def _iteration(self, end: int, comm_round: int, phase: Phase) -> int:
        return end if self.post_local_steps else comm_round * phase.local_steps

    def _file(self, epoch: int, comm_round: int, phase_round: int) -> str:
        if self.by_epochs:
            return f"{self.label}_epoch={epoch}.pt"
        return f"{self.label}_epoch={epoch}_round={comm_round}_phase_round={phase_round}.pt"

    def _phase_files(self, step: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if not self.by_epochs:
            return (), ()
        decayed = [after for before, after in pairwise(self.phases) if after.decays > before.decays]
        ends = [phase.first_step for phase in decayed if step < phase.first_step <= end]
        names = [f"phase_epoch={self.resume + at // self.steps_per_epoch}.pt" for at in ends]
        inside = tuple(name for name, at in zip(names, ends, strict=True) if at < end)
        return inside, tuple(name for name, at in zip(names, ends, strict=True) if at == end)
