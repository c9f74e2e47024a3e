"""Phases of a run, each with its number of local steps per round, H."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.training_settings import ScheduleConfig


@dataclass(frozen=True)
class Phase:
    """A range of local steps with one H.

    Attributes:
        first_step: Global local step of its begin.
        first_round: Communication rounds that ended before it.
        origin: Clients are averaged after each step t where (t + 1 - origin) is a multiple of local_steps.
        local_steps: H.
        eval_freq: Rounds between evaluations.
        save_freq: Rounds or epochs between named checkpoints.
        decays: Rate decays before it.
    """

    first_step: int
    first_round: int
    origin: int
    local_steps: int
    eval_freq: int
    save_freq: int
    decays: int


def phases(schedule: ScheduleConfig, steps_per_epoch: int, first_epoch: int) -> list[Phase]:
    """Return the phases of a run in order; late ones may begin after its end.

    With --sync qsr, whose rounds follow from the rate, `local_steps` and `first_round` mean nothing.

    Args:
        schedule: The settings.
        steps_per_epoch: Local steps per epoch.
        first_epoch: Number of the first epoch, with which decays are compared.
    """
    if schedule.schedule == "epochs" or schedule.sync == "qsr":
        return _by_epochs(schedule, steps_per_epoch, first_epoch)
    return _by_rounds(schedule, steps_per_epoch)


def decay_rounds(schedule: ScheduleConfig, steps_per_epoch: int) -> tuple[int, int]:
    """Return the communication rounds that end with the first and the second decay (--schedule rounds)."""

    def rounds(begin: int, end: int, local_steps: int) -> int:
        """Return the rounds from epoch `begin` to epoch `end`; those before --post-local-from have one step."""
        early = max(0, min(schedule.post_local_from, end) - begin)
        return early * steps_per_epoch + (end - begin - early) * steps_per_epoch // local_steps

    first = rounds(0, schedule.decay1, schedule.step1)
    return first, first + rounds(schedule.decay1, schedule.decay2, schedule.step2)


def _settings(schedule: ScheduleConfig, number: int, *, synchronous: bool) -> dict[str, int]:
    return {
        "local_steps": 1 if synchronous else (schedule.step1, schedule.step2, schedule.step3)[number - 1],
        "eval_freq": (schedule.eval_freq1, schedule.eval_freq2, schedule.eval_freq3)[number - 1],
        "save_freq": (schedule.save_freq1, schedule.save_freq2, schedule.save_freq3)[number - 1],
    }


def _by_rounds(schedule: ScheduleConfig, steps_per_epoch: int) -> list[Phase]:
    """A decay, or --post-local-from, ends its round and restarts the phase's counters.

    If both decays fall on one round, phase 3 follows.
    """
    first, second = decay_rounds(schedule, steps_per_epoch)
    switch = schedule.post_local_from * steps_per_epoch  # in rounds, as each has had one step
    numbers = {first: 2, second: 3}
    number = 1
    found = [Phase(0, 0, 0, decays=0, **_settings(schedule, number, synchronous=switch > 0))]
    for end_round in sorted({*numbers, switch}):
        if end_round < 1:
            continue
        number = numbers.get(end_round, number)
        before = found[-1]
        step = before.first_step + (end_round - before.first_round) * before.local_steps
        settings = _settings(schedule, number, synchronous=end_round < switch)
        found.append(Phase(step, end_round, step, decays=before.decays + (end_round in numbers), **settings))
    return found


def _by_epochs(schedule: ScheduleConfig, steps_per_epoch: int, first_epoch: int) -> list[Phase]:
    """A decay ends its epoch, even within a round, and restarts no counter."""
    decays = {schedule.decay1, schedule.decay2} | ({schedule.decay3} if schedule.schedule == "epochs" else set())
    switch, number, origin = schedule.post_local_from, 1, 0
    found = [Phase(0, 0, 0, decays=0, **_settings(schedule, number, synchronous=first_epoch <= switch))]
    for epoch in sorted(decays | {switch}):
        if epoch < first_epoch:
            continue
        if epoch == schedule.decay1:
            number = 2
        if epoch == schedule.decay2:
            number = 3
        before = found[-1]
        step = (epoch - first_epoch + 1) * steps_per_epoch
        whole = (step - before.origin) // before.local_steps - (before.first_step - before.origin) // before.local_steps
        if epoch == switch:
            origin = step
        settings = _settings(schedule, number, synchronous=epoch < switch)
        decayed = before.decays + (epoch in decays)
        found.append(Phase(step, before.first_round + whole, origin, decays=decayed, **settings))
    return found
