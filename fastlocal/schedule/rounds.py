"""Counters as pure arithmetic: which steps, rates, evaluations and checkpoints each communication round has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from ..config.schema import RunConfig
from .learning_rate import warm_up
from .phases import Phase, phases


@dataclass(frozen=True)
class RoundSchedule:
    """One communication round and what follows it.

    first_step, local_steps: global local steps [first_step, first_step + local_steps)
    averaged: False for steps left over at the end of the run
    comm_round, phase_round, epoch, iteration, learning_rate: the counters after the round, as metrics show them
    evaluate: whether the model is evaluated and written to latest.pt
    save_as: file name of the named checkpoint, or None
    phase_files: checkpoints of the averaged model at epochs that end before the round does, and at its end
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
        """Its place in the run, counted from 1; steps left over count as a round of their own."""
        return self.comm_round + (not self.averaged)


class Progress:
    """The plan of a whole run.

    config: with steps_per_epoch resolved
    """

    def __init__(self, config: RunConfig) -> None:
        schedule = config.schedule
        assert schedule.steps_per_epoch is not None, "resolved before the plan is made"
        self.schedule = schedule
        self.gamma = config.sgd.gamma
        self.steps_per_epoch = schedule.steps_per_epoch
        self.by_epochs = schedule.schedule == "epochs"
        self.resume = config.model.resume if config.model.resume_pth or not self.by_epochs else 0
        first_epoch = self.resume + 1 if self.by_epochs else self.resume
        self.phases = phases(schedule, self.steps_per_epoch, first_epoch)
        self.total_steps = schedule.epochs * self.steps_per_epoch
        if schedule.rounds is not None:
            self.total_steps = self._end_of_round(schedule.rounds)
        self.warm_up = warm_up(
            config.sgd,
            clients=config.clients,
            total_batch_size=config.client.total_batch_size,
            steps_per_epoch=self.steps_per_epoch,
        )

    def learning_rate(self, step: int) -> float:
        """The rate of global local step `step`."""
        return self._rate(step, self._phase_at(step))

    def start(self) -> RoundSchedule:
        """The counters before the first round, for --eval-on-start."""
        first = self.phases[0]
        epoch = self.resume
        save = epoch % first.save_freq == 0 if self.by_epochs else True
        name = self._file(epoch, 0, 0) if save else None
        return RoundSchedule(0, 0, True, 0, 0, epoch, 0, self._rate(0, first), True, name)

    def rounds(self, step: int = 0, comm_round: int = 0) -> Iterator[RoundSchedule]:
        """Every round of the run in order; the last may be left over without averaging.

        step, comm_round: local steps and averages that a run that goes on has behind it, at the end of a round
        """
        while step < self.total_steps:
            end = self._next_average(step)
            averaged = end <= self.total_steps
            end = min(end, self.total_steps)
            comm_round += averaged
            yield self._round(step, end, comm_round, averaged)
            step = end

    def count(self) -> int:
        """Number of rounds that `rounds` yields."""
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
        return self.warm_up.rate(step) * self.gamma**phase.decays

    def _next_average(self, step: int) -> int:
        """The end of the round that holds `step`, even where it lies beyond the run."""
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
        """Local steps that are done when round `comm_round`, counted from 1, ends."""
        phase = [phase for phase in self.phases if phase.first_round < comm_round][-1]
        done = (phase.first_step - phase.origin) // phase.local_steps + comm_round - phase.first_round
        return phase.origin + done * phase.local_steps

    def _round(self, step: int, end: int, comm_round: int, averaged: bool) -> RoundSchedule:
        # by rounds a decay counts before the metrics line, by epochs after it
        phase = self._phase_at(end - 1 if self.by_epochs else end)
        phase_round = comm_round if self.by_epochs else comm_round - phase.first_round
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
            iteration=comm_round * phase.local_steps,
            learning_rate=self._rate(end, phase),
            evaluate=evaluate,
            save_as=self._file(epoch, comm_round, phase_round) if save else None,
            phase_files=self._phase_files(step, end),
        )

    def _file(self, epoch: int, comm_round: int, phase_round: int) -> str:
        steps = f"H={self.schedule.step1}-{self.schedule.step2}-{self.schedule.step3}"
        if self.by_epochs:
            return f"{steps}_epoch={epoch}.pt"
        return f"{steps}_epoch={epoch}_round={comm_round}_phase_round={phase_round}.pt"

    def _phase_files(self, step: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if not self.by_epochs:
            return (), ()
        ends = [phase.first_step for phase in self.phases[1:] if step < phase.first_step <= end]
        names = [f"phase_epoch={self.resume + at // self.steps_per_epoch}.pt" for at in ends]
        inside = tuple(name for name, at in zip(names, ends, strict=True) if at < end)
        return inside, tuple(name for name, at in zip(names, ends, strict=True) if at == end)
